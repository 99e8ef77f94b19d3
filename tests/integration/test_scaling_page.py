"""docs/scaling.md: its commands are run as they stand there, on the bundled model and few samples."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from calibrate.inputs.bundled import reference_path
from calibrate.inputs.samples import load_samples
from planner.cli import cli
from planner.profile import Profile

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
PARTS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
MODEL = str(reference_path("windowed"))
#: So that a test takes seconds.
SHORT = {
    "calibrate": ["--num-samples", "8", "--batch-size", "4", "--probes", "influence"],
    "evaluate": ["--num-samples", "8", "--batch-size", "4", "--rounds", "0", "--answer-tokens", "2"],
}


def blocks(part: str, kind: str = "sh") -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PARTS[part], re.MULTILINE | re.DOTALL)


def lines(part: str) -> list[str]:
    return [line for block in blocks(part) for line in block.splitlines() if not line.startswith("#")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page's files are: a plan, and samples that it was made with and others."""
    (tmp_path / "plan.json").write_bytes((ROOT / "reports/reference/windowed/plan.json").read_bytes())
    for name, source in {"samples": "calibration", "other_samples": "test"}.items():
        data = reference_path("easy_vqa")
        samples = [json.loads(line) for line in (data / f"{source}.jsonl").read_text().splitlines()[:64]]
        text = "".join(json.dumps({**one, "image": str(data / one["image"])}) + "\n" for one in samples)
        (tmp_path / f"{name}.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """One `plan` line of the page, shortened, in this process."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    program, verb, *rest = shlex.split(os.path.expandvars(line))
    assert program == "plan"
    rest = [found for one in rest for found in ([str(p) for p in sorted(Path().glob(one))] if "*" in one else [one])]
    arguments = [verb, *(MODEL if one == "MODEL" else one for one in rest), *SHORT.get(verb, [])]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_slurm_job_array(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate, evaluate, merge, decide, united = lines("A SLURM job array")
    assert "--array=0-1" in PARTS["A SLURM job array"]
    for task in "01":
        for line in (calibrate, evaluate):
            run(line, monkeypatch, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2")
    run(merge, monkeypatch)
    assert Profile.load("profile.json").samples.n == 8
    assert "--profile profile.json" in decide, "deciding on 8 samples is refused; it is tested where there are more"
    assert "dense" in run(united, monkeypatch)


def test_an_indexed_kubernetes_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (manifest,) = blocks("An indexed Kubernetes job", "yaml")
    job = yaml.safe_load(manifest)["spec"]
    assert job["completionMode"] == "Indexed"
    (line,) = job["template"]["spec"]["containers"][0]["args"]
    assert line.endswith(f"/{job['completions']} -o calibration")
    for index in range(job["completions"]):
        run(line, monkeypatch, JOB_COMPLETION_INDEX=str(index))
    run(lines("A SLURM job array")[2], monkeypatch)
    assert Profile.load("profile.json").samples.n == 8


def launched(line: str, folder: Path) -> str:
    """What a line of the page with a launcher in it tells, shortened, in processes of its own."""
    verb = "evaluate" if " evaluate " in line else "calibrate"
    shortened = line.replace(f"plan {verb}", f"plan {verb} {' '.join(SHORT[verb])}").replace("MODEL", MODEL)
    shortened = shortened.replace(
        "accelerate launch", "accelerate launch --multi_gpu"
    )  # its default where there is one
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        ["sh", "-c", shortened], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_processes_of_one_launch_share_a_calibration(launcher: str, folder: Path) -> None:
    told = launched(next(one for one in lines("Several GPUs in one machine") if one.startswith(launcher)), folder)
    assert "in each of 2 processes" in told
    assert Profile.load("calibration/profile.json").samples.n == 8


def test_an_evaluation_by_the_launchers_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, merge = lines("Several GPUs in one machine")[-2:]
    launched(evaluate, folder)
    assert "dense" in run(merge, monkeypatch) and len(list(folder.glob("shard-*.json"))) == 2


def test_a_device_map(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = lines("A model larger than one GPU")
    assert "dense" in run(line, monkeypatch)


def test_a_streamed_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own part is played by lists: it is no dependency."""

    class Rows(list):  # type: ignore[type-arg]
        def take(self, count: int) -> Rows:
            return Rows(self[:count])

    def load_dataset(name: str, split: str, streaming: bool) -> Rows:
        assert (name, split, streaming) == ("user/data", "test", True)
        picture = Image.linear_gradient("L").resize((8, 8))
        return Rows({"image": picture, "prompt": f"What is {n}?", "answer": str(n)} for n in range(600))

    def split_dataset_by_node(rows: Rows, rank: int, world_size: int) -> Rows:
        return Rows(rows[rank::world_size])

    distributed = types.SimpleNamespace(split_dataset_by_node=split_dataset_by_node)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setitem(sys.modules, "datasets.distributed", distributed)
    (script,) = blocks("Samples from a streamed data set", "python")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        exec(compile(script, "docs/scaling.md", "exec"), {})
    subprocess.run(["sh", "-c", lines("Samples from a streamed data set")[0]], cwd=folder, check=True)
    samples = load_samples("samples.jsonl")
    assert len(samples) == 256 and len({sample.prompt for sample in samples}) == 256
    assert samples[128].prompt == "What is 1?" and samples[0].pictures()[0].size == (8, 8)
