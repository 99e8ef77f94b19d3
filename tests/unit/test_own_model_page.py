"""Times and memory on the page about one's own model are the cost model's, as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([\w.-]+)` \| (\d)[^|]* \| ([\d.]+) GB \| (.+) \|$", PAGE, re.MULTILINE)
DEVICES = ("rtx-4090", "a100-80gb", "h100-sxm")
PASSES, BATCH = 10_000, 16


def test_a_small_a_middle_and_a_large_model_are_told() -> None:
    assert [row[0] for row in ROWS] == ["mobilevlm-v2-3b", "llava-1.5-7b", "qwen2.5-vl-72b"]


@pytest.mark.parametrize(("model", "devices", "memory", "minutes"), ROWS, ids=lambda value: value)
def test_estimates_are_those_of_plan_report(model: str, devices: str, memory: str, minutes: str) -> None:
    for device, told in zip(DEVICES, minutes.split(", "), strict=True):
        arguments = ["report", model, "--hardware", device, "--pp", devices, "--batch-size", str(BATCH)]
        done = CliRunner().invoke(cli, [*arguments, "--output-tokens", "16", "--format", "json"])
        estimate = json.loads(done.stdout)["rows"][0]["latency_estimate"]
        assert f"{estimate['memory_bytes'] / 1e9:.1f}" == memory
        taken = PASSES / BATCH * estimate["total_ms"] / 60_000
        assert told == (f"{taken:.1f}" if estimate["fits"] else "does not fit"), device
