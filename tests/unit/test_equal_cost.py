"""Rivals get what the plan gets: bisection against an exhaustive search, and cases with no solution."""

from __future__ import annotations

from collections import Counter

import pytest

from calibrate.deciding.equal_cost import EqualCost, comparable, mean_flops
from calibrate.deciding.evaluate import baselines
from planner.cost import cost
from planner.errors import InputError
from planner.policies import Dense, VisiPruner
from planner.schedule import dense
from planner.spec import ModelSpec
from planner.workload import Workload

SPEC = ModelSpec.from_config("llava-1.5-7b")
SHAPES = Counter({(35, 576, 24): 3, (35, 576, 60): 1})
PLAN = VisiPruner(filter=8, keep=10, exit=24).schedule(SPEC)


def flops(schedule):
    """Decoder and head, mean over the prompts: written out, not shared with the code under test."""
    total = 0.0
    for (system, visual, text), count in SHAPES.items():
        request = Workload(visual_tokens=visual, text_tokens=text, system_tokens=system, output_tokens=1)
        found = cost(SPEC, request, schedule)
        total += count * (found.prefill_flops - found.prefill["vision"] - found.prefill["projector"])
    return total / SHAPES.total()


def test_mean_flops():
    assert mean_flops(SPEC, PLAN, SHAPES) == pytest.approx(flops(PLAN), rel=1e-15)


@pytest.mark.parametrize("name", comparable())
def test_rivals_cost_what_the_plan_costs_or_little_more(name):
    equal = EqualCost(SPEC, PLAN, SHAPES)
    found = equal.schedule(equal.policy(name))
    # One visual token more in all layers is 1/576 of dense; fitprune's counts round layer by layer.
    assert flops(PLAN) <= flops(found) <= flops(PLAN) + 2 * flops(dense(SPEC.layers)) / 576


@pytest.mark.parametrize("name", ["fastv", "random"])
@pytest.mark.parametrize("keep", [10, 60])
def test_one_token_fewer_would_cost_less(name, keep):
    schedule = VisiPruner(filter=8, keep=keep, exit=24).schedule(SPEC)
    baseline = EqualCost(SPEC, schedule, SHAPES).policy(name)
    kept = round((1 - baseline.ratio) * 576)
    fewer = baseline.model_copy(update={"ratio": 1 - (kept - 1) / 576})
    assert flops(fewer.schedule(SPEC)) < flops(schedule) <= flops(baseline.schedule(SPEC))


def test_a_budget_nobody_reaches_gives_the_cheapest_member():
    tiny = VisiPruner(filter=0, keep=0, exit=2).schedule(SPEC)
    baseline = EqualCost(SPEC, tiny, SHAPES).policy("fastv")
    assert (baseline.k, baseline.ratio) == (1, 0.9999)
    assert flops(baseline.schedule(SPEC)) > flops(tiny)


def test_every_policy_that_can_be_turned_is_compared_under_its_name_and_variants():
    assert set(comparable()) == {
        "cdpruner", "dart", "diverse", "fastv", "fitprune", "pool", "prellm", "prellm-norm", "pyramiddrop", "random",
        "resize", "sparsevlm", "vispruner",
    }  # fmt: skip
    variant = EqualCost(SPEC, PLAN, SHAPES).policy("prellm-norm")
    assert variant.rank_by == "norm" and str(variant).endswith("rank_by=norm")


@pytest.mark.parametrize("name", ["visipruner", "prellm-random", "dense", "norm"])
def test_what_cannot_be_turned_to_a_cost_is_refused(name):
    with pytest.raises(InputError, match=r"no form for a given cost.*prellm-norm"):
        EqualCost(SPEC, PLAN, SHAPES).policy(name)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="pyramiddrop"):
        EqualCost(SPEC, PLAN, SHAPES).policy("pyramidrop")


def test_full_spellings_are_taken_as_they_are():
    found = baselines(["fastv", "fastv:k=3,ratio=0.25"], SPEC, (VisiPruner(filter=8, keep=10, exit=24), PLAN), SHAPES)
    dense_first, planned, _, spelled = found
    assert (dense_first, spelled) == ("dense", "fastv:k=3,ratio=0.25") and planned.startswith("visipruner")


def test_a_plan_that_changes_nothing_has_no_rivals():
    assert list(baselines(["fastv", "random"], SPEC, (Dense(), dense(SPEC.layers)), SHAPES)) == ["dense"]
