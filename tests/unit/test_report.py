"""`plan report` and `plan ls`: the JSON contract, the other formats, targets, and refusals."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from planner.cli.ls import command as ls
from planner.cli.report import command as report
from planner.cost import COMPONENTS, CONVENTIONS
from planner.errors import PlannerError
from planner.policies import FastV, PreLLM
from planner.policies.base import REGISTRY
from planner.report.published import comparisons, markdown
from planner.report.sweeps import parse_sweep
from planner.report.tables import layer_runs

ROW_KEYS = {
    "policy", "prefill_flops", "prefill_ratio", "prefill_by_component", "visual_attention_ratio",
    "decode_flops_per_token", "kv_cache_bytes", "kv_cache_ratio", "visual_tokens_per_layer",
}  # fmt: skip


def run(*arguments: str) -> Any:
    return CliRunner().invoke(report, arguments, catch_exceptions=True)


def as_json(*arguments: str) -> Any:
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, PlannerError), result.output
    return str(result.exception)


def test_json_contract() -> None:
    found = as_json(
        "llava-1.5-7b", "--policy", "fastv:k=3,ratio=0.75", "--policy", "visipruner:filter=8,keep=10,exit=24",
        "--visual-tokens", "576", "--text-tokens", "64", "--system-tokens", "10",
    )  # fmt: skip
    assert set(found) == {"model", "convention", "workload", "rows"}
    assert found["model"] == "llava-1.5-7b" and found["convention"] == "exact"
    assert found["workload"] == {
        "visual_tokens": 576, "text_tokens": 64, "system_tokens": 10, "output_tokens": 64, "batch": 1,
    }  # fmt: skip
    assert [row["policy"] for row in found["rows"]] == [
        "dense", "fastv:k=3,ratio=0.75", "visipruner:filter=8,keep=10,exit=24",
    ]  # fmt: skip
    for row in found["rows"]:
        assert set(row) == ROW_KEYS
        assert set(row["prefill_by_component"]) == set(COMPONENTS)
        assert sum(row["prefill_by_component"].values()) == row["prefill_flops"]
        assert len(row["visual_tokens_per_layer"]) == 32
        assert isinstance(row["kv_cache_bytes"], int)
    whole, fastv, _ = found["rows"]
    assert whole["prefill_flops"] == 9_046_658_744_320
    assert whole["prefill_ratio"] == whole["visual_attention_ratio"] == whole["kv_cache_ratio"] == 1
    assert fastv["visual_attention_ratio"] == pytest.approx(1 - 0.830, abs=5e-4)
    assert fastv["visual_tokens_per_layer"] == [576] * 3 + [144] * 29


def test_conventions_of_papers() -> None:
    found = as_json(
        "llava-1.5-7b", "--convention", "pdrop", "--policy", "pyramiddrop:layers=8/16/24,keep=0.5",
        "--policy", "visipruner:filter=14.94,keep=10.3,exit=23.9",
    )["rows"]  # fmt: skip
    assert found[0]["prefill_flops"] == pytest.approx(3.817e12, rel=1e-3)
    assert found[1]["prefill_flops"] == pytest.approx(1.777e12, rel=1e-3)
    assert found[2]["prefill_ratio"] == pytest.approx(1 - 0.539, abs=5e-4)


def test_image_sizes_decide_the_tokens() -> None:
    found = as_json("qwen2-vl-7b", "--image", "640x480", "--image", "640x480")
    assert found["workload"]["visual_tokens"] == 2 * 391


def test_several_targets_are_a_list() -> None:
    assert [found["model"] for found in as_json("llava-1.5-7b", "qwen2-vl-7b")] == ["llava-1.5-7b", "qwen2-vl-7b"]


def test_a_config_file_and_a_folder(tmp_path: Path) -> None:
    from planner.spec import shipped_model

    (tmp_path / "config.json").write_text(json.dumps(shipped_model("llava-1.5-7b")["config"]))
    for target in (str(tmp_path), str(tmp_path / "config.json")):
        found = as_json(target)
        assert found["workload"]["visual_tokens"] == 576
        assert found["rows"][0]["prefill_flops"] == 9_046_658_744_320


def test_a_plan_brings_its_own_row(tmp_path: Path) -> None:
    from planner.plan import Decision, Plan
    from planner.policies import parse
    from planner.profile import ModelIdentity
    from planner.spec import ModelSpec, shipped_model

    spec = ModelSpec.from_config("llava-1.5-7b")
    identity = ModelIdentity(
        id="llava-hf/llava-1.5-7b-hf", family=spec.family, config=shipped_model("llava-1.5-7b")["config"],
        config_digest=spec.digest, layers=spec.layers, hidden_size=spec.hidden_size,
        image_token_id=spec.image_token_id,
    )  # fmt: skip
    policy = "visipruner:filter=8,keep=10,exit=24"
    path = tmp_path / "plan.json"
    Plan(model=identity, decision=Decision(policy=policy, schedule=parse(policy).schedule(spec))).sealed().save(path)
    rows = as_json(str(path), "--visual-tokens", "576")["rows"]
    assert [row["policy"] for row in rows] == ["dense", policy]
    assert rows[1] == as_json("llava-1.5-7b", "--policy", policy)["rows"][1]


def test_csv_holds_the_same_figures() -> None:
    result = run("llava-1.5-7b", "--policy", "fastv:k=2,ratio=0.5", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(result.stdout)))
    rows = as_json("llava-1.5-7b", "--policy", "fastv:k=2,ratio=0.5")["rows"]
    for line, row in zip(lines, rows, strict=True):
        assert line["policy"] == row["policy"]
        assert int(line["prefill_flops"]) == row["prefill_flops"]
        assert int(line["prefill_ffn_flops"]) == row["prefill_by_component"]["ffn"]
        assert [float(n) for n in line["visual_tokens_per_layer"].split()] == row["visual_tokens_per_layer"]


@pytest.mark.parametrize("fmt", ["table", "md", "html"])
def test_formats_for_readers(fmt: str) -> None:
    result = run("llava-1.5-7b", "--policy", "visipruner:filter=8,keep=10,exit=24", "--hardware", "l4", "--format", fmt)
    assert result.exit_code == 0
    for text in (
        "9.047 T",
        "576 x 9, 10 x 15, 0 x 8",
        "341 MB",
        "estimates",
        "NVIDIA L4" if fmt != "html" else "roofline",
    ):
        assert text in result.stdout.replace("\u00a0", " ")


def test_hardware_adds_estimates() -> None:
    """A step of transformers waits for Python, as measured: 25.8 ms in reports/benchmark-gpu.md; good kernels read."""
    hf, ideal = (
        as_json("llava-1.5-7b", "--hardware", "h100-sxm", "--engine", name)["rows"][0]["latency_estimate"]
        for name in ("hf", "ideal")
    )
    assert hf["hardware"] == "NVIDIA H100 SXM" and hf["engine"] == "hf"
    assert hf["decode_bound"] == "overhead" and ideal["decode_bound"] == "memory"
    assert hf["per_token_ms"] == pytest.approx(25.8, rel=0.05)


def test_a_sparse_peak_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text(
        json.dumps({"name": "NVIDIA L4", "peak_tflops": 242, "bandwidth_gbs": 300, "memory_gb": 24, "source": "sheet"})
    )
    result = run("llava-1.5-7b", "--hardware", str(path))
    assert result.exit_code == 0
    assert "looks like a peak with sparsity" in result.stderr


def test_sweep_is_csv(tmp_path: Path) -> None:
    target = tmp_path / "sweep.csv"
    result = run("llava-1.5-7b", "--sweep", "visipruner:filter=2..4,keep=5/10,exit=20..30..5", "-o", str(target))
    assert result.exit_code == 0
    lines = list(csv.DictReader(io.StringIO(target.read_text())))
    assert len(lines) == 3 * 2 * 3
    line = next(li for li in lines if (li["filter"], li["keep"], li["exit"]) == ("3", "10", "25"))
    row = as_json("llava-1.5-7b", "--policy", "visipruner:filter=3,keep=10,exit=25")["rows"][1]
    assert int(line["prefill_flops"]) == row["prefill_flops"]
    assert float(line["visual_attention_ratio"]) == pytest.approx(row["visual_attention_ratio"])


def test_a_bundled_model_goes_by_its_name() -> None:
    """It has images of 60 pixels in patches of 5."""
    found = as_json("reference/plain")
    assert (found["model"], found["workload"]["visual_tokens"]) == ("plain", 144)
    assert "there is no model named 'reference/none'" in refused("reference/none")


def test_eager_attention_takes_memory() -> None:
    """A weight of every head and pair of 4,170 rows, in float32 and twice in 16 bits."""
    arguments = ("llava-1.5-7b", "--hardware", "h100-sxm", "--text-tokens", "3584")
    fused, eager = (as_json(*arguments, *more)["rows"][0]["latency_estimate"] for more in ((), ("--eager",)))
    assert eager["activation_bytes"] - fused["activation_bytes"] == 32 * 4170**2 * 8
    assert eager["time_to_first_token_ms"] == fused["time_to_first_token_ms"]


def test_sweep_spelling() -> None:
    assert parse_sweep("fastv:k=2..4,ratio=0.1..0.3..0.1") == [(FastV, {"k": [2, 3, 4], "ratio": [0.1, 0.2, 0.3]})]
    (prellm, words), (_, lists) = parse_sweep("prellm:keep=0.5,rank_by=norm/attention+sparsevlm:keep=3/2/1|9/6/4")
    assert (prellm, words) == (PreLLM, {"keep": [0.5], "rank_by": ["norm", "attention"]})
    assert lists == {"keep": ["3/2/1", "9/6/4"]}


def test_a_range_of_fractions_without_a_step_is_ten_values() -> None:
    ((_, axes),) = parse_sweep("fastv:k=2,ratio=0.1..0.9")
    ratios = axes["ratio"]
    assert (len(ratios), ratios[0], ratios[-1]) == (10, 0.1, 0.9)
    steps = [after - before for before, after in pairwise(ratios)]
    assert steps == pytest.approx([0.8 / 9] * 9)
    assert parse_sweep("fastv:k=2,ratio=0.5..0.5")[0][1]["ratio"] == [0.5]


#: What policies cannot do without, as ranges.
REQUIRED = {
    "shortv": "shortv:layers=20/21|20/24", "var": "var:dims=7/9", "visipruner": "visipruner:filter=8..9,keep=10",
    "vtw": "vtw:k=16..17",
}  # fmt: skip


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_policy_sweeps_in_every_convention(name: str, convention: str) -> None:
    """The last line is what a report of that policy alone says."""
    settings = ["--convention", convention, *(["--context-tokens", "32"] if name == "context" else [])]
    result = run("llava-1.5-7b", "--sweep", REQUIRED.get(name, name), *settings)
    assert result.exit_code == 0, result.output
    line = list(csv.DictReader(io.StringIO(result.output)))[-1]
    keys = {key: values[-1] for key, values in parse_sweep(REQUIRED.get(name, name))[0][1].items()}
    spelled = f"{name}:{','.join(f'{key}={value}' for key, value in keys.items())}" if keys else name
    row = as_json("llava-1.5-7b", "--policy", spelled, *settings)["rows"][-1]
    assert float(line["prefill_flops"]) == pytest.approx(row["prefill_flops"], rel=1e-12)
    assert int(line["kv_cache_bytes"]) == row["kv_cache_bytes"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("llava-1.5-7",), "Did you mean 'llava-1.5-7b'"),
        (("llava-1.5-7b", "--policy", "fastvv"), "Did you mean 'fastv'"),
        (("llava-1.5-7b", "--policy", "fastv:q=1"), "has no key 'q'"),
        (("llava-1.5-7b", "--convention", "exat"), "Did you mean 'exact'"),
        (("llava-1.5-7b", "--visual-tokens", "-5"), "visual_tokens"),
        (("llava-1.5-7b", "--batch", "0"), "batch"),
        (("llava-1.5-7b", "--text-tokens", "99999999999"), "text_tokens"),
        (("llava-1.5-7b", "--context-tokens", "500"), "cannot exceed text_tokens"),
        (("llava-1.5-7b", "--image", "0x480"), "makes no sense"),
        (("llava-1.5-7b", "--hardware", "h101"), "no hardware row"),
        (("llava-1.5-7b", "--sweep", "fastv:k=5..2,ratio=0.5"), "not a rising range"),
        (("llava-1.5-7b", "--sweep", "fastv:k=a..5,ratio=0.5"), "not a number or a range"),
        (("llava-1.5-7b", "--sweep", "fastv:k=a,ratio=0.5"), "valid integer"),
        (("llava-1.5-7b", "--sweep", "fastv:k=2,ratio=nan..1"), "not a rising range"),
        (("llava-1.5-7b", "--sweep", "fastv:k=2,ratio=0.1..0.9..0"), "not a rising range"),
        (("llava-1.5-7b", "--sweep", "fastv:kk=2"), "has no key 'kk'. Did you mean 'k'"),
        (("llava-1.5-7b", "--sweep", "fastvv:k=2"), "Did you mean 'fastv'"),
        (("llava-1.5-7b", "--sweep", "fastv:k=1..31,ratio=0..1..0.000001"), "combinations"),
        (("llava-1.5-7b", "--policy", "visipruner:filter=3.5,keep=3"), "cannot be executed"),
    ],
)  # fmt: skip
def test_refusals(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(*arguments)


def test_no_target_is_wrong_usage() -> None:
    assert run().exit_code == 2
    assert run("llava-1.5-7b", "--image", "640").exit_code == 2


def test_staircase() -> None:
    assert layer_runs([576] * 3 + [144] * 29) == "576 x 3, 144 x 29"
    assert layer_runs([5.5, 5.5]) == "5.5 x 2"


@pytest.mark.parametrize("what", ["models", "families", "policies", "hardware", "conventions"])
def test_ls(what: str) -> None:
    result = CliRunner().invoke(ls, [what, "--format", "json"])
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) >= 5


def test_published_figures_are_current() -> None:
    """`plan report --published -o reports/published.md` was run after the last change of the model."""
    committed = Path(__file__).parents[2] / "reports" / "published.md"
    assert committed.read_text() == markdown()


def test_published_verdicts() -> None:
    found = {(c.source, c.what): c for c in comparisons()}
    assert found["VisiPruner, table 5", "LLaVA-1.5-7B, VisiPruner"].verdict == "yes"
    assert found["VisiPruner, table 6", "FastV, K=3, R=75 %"].verdict == "yes"
    assert found["FastV, table 1", "LLaVA-1.5-13B, K=2, R=75 %"].verdict == "yes"
    assert found["FastV, table 1", "LLaVA-1.5-7B, K=0, R=90 %"].verdict == "no"
    assert found["VisiPruner, table 6", "VisiPruner"].verdict == "no"
    assert all(c.needed or c.note for c in found.values() if c.verdict == "no")


def test_a_report_imports_no_torch_and_no_numpy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from planner.cli.report import command;"
        "result = CliRunner().invoke(command, ['llava-1.5-7b', '--policy', 'fastv:k=2,ratio=0.5']);"
        "assert result.exit_code == 0, result.output;"
        "print([name for name in ('torch', 'transformers', 'numpy', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
