"""What the README promises is what the repository does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from planner import load_plan
from planner.cli import VERBS
from planner.report.evidence_view import evidence_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_continuous_integration_runs_the_readme_s_test_command():
    command = "pip install -c constraints.txt -e '.[dev]' && ruff check && mypy && pytest"
    assert f"    {command}\n" in README
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


def test_measured_table_is_the_committed_plan_s():
    plan = load_plan(ROOT / "reports" / "reference" / "windowed" / "plan.json")
    assert plan.evidence is not None
    block = README.split("<!-- measured:start -->")[1].split("<!-- measured:end -->")[0]
    assert evidence_table(plan.evidence, "md") in block, "run: plan show reports/reference/windowed/plan.json"


def test_verbs_and_files_named_exist():
    verbs = set(re.findall(r"\bplan ([a-z]+)\b(?= |`)", README)) - {"that", "for", "is", "may", "retreats", "applies"}
    named = {verb for verb in verbs if f"`plan {verb}" in README or f"    plan {verb}" in README}
    assert named <= set(VERBS)
    for path in re.findall(r"`((?:reports|profiles|planner|tests)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ["windowed", "plain"])
def test_committed_reference_plans_fit_the_bundled_models(name):
    plan = load_plan(ROOT / "reports" / "reference" / name / "plan.json")
    plan.check(ROOT / "profiles" / "reference" / name)
