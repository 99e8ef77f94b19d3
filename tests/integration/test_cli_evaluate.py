"""`plan evaluate` on the shipped model: rows at equal cost, the random control, refusals."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from calibrate.inputs.bundled import reference_path
from planner.cli import cli
from planner.errors import InputError
from planner.plan import load_plan

PLAN = "reports/reference/windowed/plan.json"


@pytest.fixture
def plan_path(request):
    return str(request.config.rootpath / PLAN)


def run(*arguments):
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def test_policies_stand_beside_the_plan_at_its_cost(plan_path, tmp_path):
    log = tmp_path / "answers.jsonl"
    options = ("--log-samples", log, "--num-samples", 24, "--rounds", 0, "--format", "json")
    against = ("--policy", "random", "--policy", "prellm-norm", "--policy", "fastv:k=2,ratio=0.5")
    done = run(plan_path, *options, *against)
    found = json.loads(done.stdout)
    rows = {row["policy"]: row for row in found["rows"]}
    plan = load_plan(plan_path).decision.policy
    assert list(rows)[:2] == ["dense", plan]
    assert [row["role"] for row in rows.values()][:4] == ["dense", "plan", "floor", "blind"]
    compared = [row for row in rows.values() if row["role"] not in ("floor", "blind")]
    dense, planned, random, prellm, spelled = compared[:5]
    assert spelled["policy"] == "fastv:k=2,ratio=0.5"
    assert dense["agreement"]["value"] == 1 and found["samples"] == 24
    for baseline in (random, prellm):
        assert 0 <= baseline["decoder_flops_ratio"] - planned["decoder_flops_ratio"] < 0.01
    assert spelled["decoder_flops_ratio"] > planned["decoder_flops_ratio"] + 0.1
    assert set(found["by_kind"]) == set(rows) and found["metric"] == "exact"
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(logged) == 24 and all(set(one["answers"]) == set(rows) for one in logged)
    same = sum(one["answers"][plan] == one["answers"]["dense"] for one in logged)
    assert same >= round(24 * rows[plan]["agreement"]["value"])  # an end apart, which texts do not show
    assert all(one["prompt"] and one["accepted"] and "test.jsonl:" in one["sample"] for one in logged)


def test_a_metric_of_ones_own_that_raises_is_named_with_its_sample(plan_path, tmp_path, monkeypatch):
    (tmp_path / "dividing_by_zero.py").write_text("def score(answer, accepted):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        InputError, match=r"the metric dividing_by_zero:score fails on .*test\.jsonl:\d+: ZeroDivisionError"
    ):
        run(plan_path, "--num-samples", 2, "--rounds", 0, "--metric", "dividing_by_zero:score")
    with pytest.raises(InputError, match="no metric is called 'exakt'"):
        run(plan_path, "--metric", "exakt")


def test_samples_of_ones_own_are_needed_for_a_model_of_ones_own(plan_path):
    with pytest.raises(InputError, match="no bundled samples"):
        run(plan_path, "--model", reference_path("windowed"))


def test_a_misspelled_policy_is_refused_before_the_samples_run(plan_path):
    with pytest.raises(InputError, match="no form for a given cost"):
        run(plan_path, "--num-samples", 2, "--policy", "pyramidrop")
