"""`plan report --check` on the bundled models: counts in every format, what is said of them, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calibrate.inputs.bundled import reference_path
from calibrate.running.check import COUNTED_PARTS, Check
from planner.cli import cli
from planner.errors import InputError, ScheduleError
from planner.report.check_view import render_checks
from planner.workload import Workload

FASTV = "fastv:k=2,ratio=0.5"
PROBING = "visipruner:filter=3,keep=10,exit=6,probe=true"


def check(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["report", "--check", *arguments])


def test_a_directory_is_loaded_run_and_counted(tmp_path: Path) -> None:
    """As json: the components, their sums, and that both counters equal the prediction."""
    folder, out = str(reference_path("windowed")), tmp_path / "check.json"
    found = check(folder, "--policy", FASTV, "--policy", PROBING, "--format", "json", "-o", str(out))
    assert found.exit_code == 0 and found.stdout == ""
    document = json.loads(out.read_text())
    assert document["model"] == "reference/windowed" and document["notes"] == []
    assert document["workload"]["visual_tokens"] == 144
    assert [row["policy"] for row in document["checks"]] == ["dense", FASTV, PROBING]
    for row in document["checks"]:
        assert list(row["torch_flops"]) == [*COUNTED_PARTS, "total"]
        assert row["torch_flops"]["total"] == sum(row["torch_flops"][name] for name in COUNTED_PARTS)
        assert row["torch_flops"] == row["predicted_flops"] and row["torch_equal"] is True
    dense, fastv, probing = document["checks"]
    assert all(row["fvcore_flops"] == row["torch_flops"] and row["fvcore_equal"] for row in (dense, fastv))
    assert probing["fvcore_flops"] is None and probing["fvcore_equal"] is None and "probes" in probing["note"]
    assert fastv["torch_flops"]["ffn"] < dense["torch_flops"]["ffn"]
    # By hand: three products for each row in each layer.
    config = json.loads((reference_path("windowed") / "config.json").read_text())["text_config"]
    width, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    rows = sum(document["workload"][name] for name in ("system_tokens", "visual_tokens", "text_tokens"))
    assert dense["torch_flops"]["ffn"] == 2 * layers * rows * 3 * width * inner


@pytest.mark.parametrize(("fmt", "line"), [("table", "{}"), ("md", "- {}")])
def test_readers_get_a_line_of_yes_or_no_for_each_counter(fmt: str, line: str) -> None:
    found = check("reference/plain", "--format", fmt, "--head", "all")
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert lines.count(line.format("dense: torch equals the prediction: yes")) == 1
    assert lines.count(line.format("dense: fvcore equals the prediction: yes")) == 1
    (total,) = (words for words in lines if "total" in words)
    assert total.count("|") == (6 if fmt == "md" else 0)


def test_what_differs_is_called_different_and_what_is_missing_is_left_empty() -> None:
    counts = {"vision": 40, "attention": 1200, "ffn": 7, "lm_head": 1}
    wrong = Check("dense", counts, {**counts, "ffn": 6}, {**counts, "vision": 30}, "a reason")
    missing = replace(wrong, policy="other", torch=counts, fvcore=None)
    text = render_checks("m", Workload(visual_tokens=3), [wrong, missing], ["a note"], "md")
    assert "| dense    | feed-forward            |           7 |              6 |               7 |" in text
    assert "| dense    | total                   |       1,248 |          1,247 |           1,238 |" in text
    assert "| other    | total                   |       1,248 |          1,248 |                 |" in text
    for line in (
        "- dense: torch equals the prediction: no",
        "- dense: fvcore equals the prediction: no (a reason)",
        "- other: torch equals the prediction: yes",
        "- other: fvcore equals the prediction: not counted (a reason)",
        "- a note",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("reference/plain", "llava-1.5-7b", "--text-tokens", "9"), "TARGET, --text-tokens cannot go with --check"),
        (("reference/plain", "--hardware", "l4"), "--hardware cannot go with --check"),
        (("reference/plain", "--format", "csv"), "--check prints table, md or json"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], says: str) -> None:
    found = check(*arguments)
    assert found.exit_code == 2 and says in found.output


def test_refusals() -> None:
    found = check("llava-1.5-7b")
    assert isinstance(found.exception, InputError) and "without weights" in str(found.exception)
    found = check("reference/plain", "--policy", "visipruner:filter=30,keep=10,exit=40")
    assert isinstance(found.exception, (InputError, ScheduleError))
