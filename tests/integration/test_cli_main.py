"""The main job through the command line: calibrate, show, run, bench, export, merge, on the bundled reference model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from calibrate.inputs.bundled import reference_path
from planner import load_plan

SAMPLES = reference_path("easy_vqa")


def plan(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from planner.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short calibration: enough to pass through every step, not to judge the plan."""
    out = tmp_path_factory.mktemp("calibrated")
    done = plan(
        "calibrate", "--num-samples", 64, "--eval-samples", 24, "--agreement", 0.9, "--measure", 24,
        "--set", "masking.samples=6", "-o", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("This plan computes ") and "resize: resize:keep=" in done.stdout
    return out


def test_calibrate_writes_a_whole_plan_with_evidence(calibrated: Path) -> None:
    made = load_plan(calibrated / "plan.json")
    assert made.evidence is not None
    rows = made.evidence.rows
    assert rows[0].policy == "dense" and rows[0].decoder_flops_ratio == 1
    assert rows[0].accuracy is not None and rows[0].accuracy.value > 0.9
    assert made.decision.policy != "dense", "the windowed model needs few tokens: some plan must hold"
    assert any(row.policy.startswith("random") for row in rows)
    assert rows[1].decoder_flops_ratio < 0.8
    assert [row.role for row in rows] == ["dense", "plan", "floor", "blind", "policy", "policy", "policy"]
    baselines = [row.decoder_flops for row in rows if row.role == "policy"]
    assert all(flops >= rows[1].decoder_flops for flops in baselines), "a baseline got less compute than the plan"
    html = (calibrated / "report.html").read_text()
    assert "<svg" in html and made.decision.policy in html
    assert html.count("<article>") == 6 and html.count('<image id="sample-') == 6
    assert html.count("of 144</figcaption>") >= 6, "each picture with what the plan kept of it"


@pytest.fixture(scope="module")
def fastv(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for a policy that was chosen by hand."""
    target = tmp_path_factory.mktemp("exported") / "fastv.json"
    done = plan("freeze", calibrated / "profile.json", "--policy", "fastv:k=2,ratio=0.5", "-o", target)
    assert done.returncode == 0, done.stderr
    assert "not measured" in done.stdout
    return target


def test_run_answers_and_draws(fastv: Path, tmp_path: Path) -> None:
    line = json.loads((SAMPLES / "evaluation.jsonl").read_text().splitlines()[0])
    picture = tmp_path / "kept.png"
    done = plan(
        "run", fastv, "--image", SAMPLES / line["image"], "--prompt", line["prompt"],
        "--overlay", picture, "--dense",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, "one word is the answer"
    assert "visual tokens per layer: 144 x 2, 72 x 8\n" in done.stderr
    with Image.open(picture) as drawn:
        assert drawn.width > 2 * 336 and drawn.height > 336 + 3 * 22, "question and two answers stand above"


def test_bench_measures_beside_predictions(calibrated: Path, tmp_path: Path) -> None:
    arguments = ("bench", calibrated / "plan.json", "--rounds", 2, "--new-tokens", 2)
    done = plan(*arguments, "--fit-hardware", "mine", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    measured, predicted = found["measured"], found["predicted_ratio"]
    ratio = measured["planned"]["kv_cache_bytes"] / measured["dense"]["kv_cache_bytes"]
    assert ratio == predicted["flops"]["KV cache bytes"]
    assert predicted["flops"]["prefill ms"] < predicted["flops_and_bytes"]["prefill ms"] < 1
    assert measured["dense"]["peak_memory_bytes"] is None or measured["dense"]["peak_memory_bytes"] > 100_000
    assert json.loads((tmp_path / "mine.json").read_text()) == found["hardware"]
    again = plan(*arguments, "--hardware", "mine.json", cwd=tmp_path)
    assert again.returncode == 0 and "by FLOPs and bytes" in again.stdout


def test_export_and_validate(fastv: Path) -> None:
    assert plan("validate", fastv, "--model", reference_path("windowed")).returncode == 0
    assert load_plan(fastv).evidence is None


MEASURE = ("calibrate", "--probes", "influence,sinks", "--num-samples", 20, "--batch-size", 4, "--profile-only")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The profile of one process."""
    out = tmp_path_factory.mktemp("measured")
    whole = plan(*MEASURE, "-o", out)
    assert whole.returncode == 0, whole.stderr
    return (out / "profile.json").read_bytes()


def test_shards_merge_to_the_profile_of_one_process(measured: bytes, tmp_path: Path) -> None:
    for index in range(2):
        done = plan(*MEASURE, "--shard", f"{index}/2", "-o", tmp_path / "parts")
        assert done.returncode == 0, done.stderr
    states = sorted((tmp_path / "parts").glob("*.state.safetensors"))
    merged = plan("merge", *states, "-o", tmp_path / "merged" / "profile.json")
    assert merged.returncode == 0, merged.stderr
    assert (tmp_path / "merged" / "profile.json").read_bytes() == measured


def test_torchrun_gives_the_profile_of_one_process(measured: bytes, tmp_path: Path) -> None:
    script = tmp_path / "plan.py"
    script.write_text("from planner.cli import main; main()")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    done = subprocess.run(
        [*map(str, launch), *map(str, MEASURE), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "over 12 samples together in each of 2 processes" in done.stderr
    assert (tmp_path / "out" / "profile.json").read_bytes() == measured


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("calibrate", "no/such-model", "--data", "x.jsonl"), "Error: "),
        (("calibrate", "--data", "none.jsonl"), "none.jsonl"),
        (("calibrate", "--probes", "influenze"), "influence"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_left(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = plan(*arguments, "-o", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and words in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
