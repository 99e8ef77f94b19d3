"""`plan evaluate` on the shipped model: rows at equal cost, the random control, refusals."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from calibrate.deciding.evaluation_shards import EvaluationShard
from calibrate.inputs.bundled import reference_path
from planner.cli import cli
from planner.errors import CalibrationError, InputError, PlanDigestError
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


# -- shards -----------------------------------------------------------------------------------------------------------

#: 22 samples in batches of 4: the last batch is not full, and shards have unlike numbers of samples.
SHARDED = ("--num-samples", 22, "--batch-size", 4, "--rounds", 0, "--answer-tokens", 4)


def merge(*arguments):
    return CliRunner().invoke(cli, ["merge", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def shards(request, tmp_path_factory):
    """Three shards and what one process makes of the same samples, judged token by token."""
    folder, plan = tmp_path_factory.mktemp("shards"), str(request.config.rootpath / PLAN)
    judged = (*SHARDED, "--loss", "tokens", "--policy", "prellm")
    paths = [folder / f"{i}.json" for i in range(3)]
    for i, path in enumerate(paths):
        done = run(plan, *judged, "--shard", f"{i}/3", "-o", path)
        assert done.exit_code == 0 and done.stdout == "" and f"wrote {path}" in done.stderr
    return paths, run(plan, *judged, "--format", "json").stdout


def test_merged_shards_are_the_evaluation_of_one_process(shards):
    paths, whole = shards
    assert json.loads(merge(*reversed(paths), "--format", "json").stdout) == json.loads(whole)
    assert json.loads(whole)["samples"] == 22 and json.loads(whole)["rows"][1]["loss"] is not None
    assert [len(EvaluationShard.load(path).executed.ids) for path in paths] == [8, 8, 6]


def test_shards_that_do_not_belong_together_are_refused(shards, plan_path, tmp_path):
    paths, _ = shards
    with pytest.raises(CalibrationError, match="shard 1 of 3 is missing"):
        merge(paths[0], paths[2])
    with pytest.raises(CalibrationError, match="shard 0 is given twice"):
        merge(paths[0], *paths)
    run(
        plan_path,
        *SHARDED,
        "--loss",
        "tokens",
        "--policy",
        "prellm",
        "--seed",
        1,
        "--shard",
        "1/3",
        "-o",
        tmp_path / "1.json",
    )
    with pytest.raises(
        CalibrationError, match=r"1\.json is of another evaluation than .*0\.json: samples, seed differ"
    ):
        merge(paths[0], tmp_path / "1.json", paths[2])
    body = json.loads(paths[1].read_text())
    body["executed"]["runs"][0]["answers"][0] = "red"
    (tmp_path / "edited.json").write_text(json.dumps(body))
    with pytest.raises(PlanDigestError, match="was changed after it was written"):
        merge(paths[0], tmp_path / "edited.json", paths[2])


@pytest.mark.parametrize(("shard", "says"), [("3/3", "shard 3/3 does not exist"), ("0/9", "too few for 9 shards")])
def test_a_shard_that_cannot_be_is_refused(plan_path, shard, says):
    with pytest.raises(InputError, match=says):
        run(plan_path, *SHARDED, "--shard", shard)
