"""What is minimised, what a constraint says, and what is said where none can meet it."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.deciding.constraints import check_constraints
from calibrate.deciding.decide import Effort
from calibrate.deciding.demand import Demand
from calibrate.deciding.objective import Costing, Objective, decoder_flops, profile_workload
from calibrate.deciding.space import Space
from planner.cost import cost
from planner.cost.hardware import hardware
from planner.cost.roofline import latency
from planner.errors import CalibrationError, InputError
from planner.policies import FastV, VisiPruner, parse
from planner.schedule import dense
from tests.planted import LAYERS, SPEC, World, decided, planted_profile

PROFILE = planted_profile()
WORKLOAD = profile_workload(PROFILE, 8)
SCHEDULE = VisiPruner(filter=3, keep=10, exit=7).schedule(SPEC)
WORLD = World("easy", entry={"": (0.02, 4.0)}, inner={"": (0.02, 4.0)}).population()


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_figures_are_those_of_the_cost_model() -> None:
    found = Costing(SPEC, WORKLOAD, Objective(hardware="h100-sxm")).figures(SCHEDULE)
    expected = cost(SPEC, WORKLOAD, SCHEDULE)
    assert found.flops == expected.prefill_flops - expected.prefill["vision"] - expected.prefill["projector"]
    assert found.flops == decoder_flops(SPEC, WORKLOAD, SCHEDULE)
    assert found.kv_mb == expected.kv_cache_bytes / 1e6
    times = latency(expected, hardware("h100-sxm"))
    assert (found.prefill_ms, found.latency_ms) == (times.prefill_ms, times.total_ms)
    assert found.visual_tokens == pytest.approx((4 * 144 + 3 * 10) / 10)


def test_more_questions_take_the_image_stream_from_the_cache() -> None:
    one, three = (Costing(SPEC, WORKLOAD, Objective(questions=n)).figures(SCHEDULE).flops for n in (1, 3))
    cached = decoder_flops(SPEC, WORKLOAD.model_copy(update={"image_stream_cached": True}), SCHEDULE)
    assert cached < one and three == pytest.approx((one + 2 * cached) / 3)


@pytest.mark.parametrize("quantity", ["flops", "kv", "prefill-ms", "latency"])
def test_the_share_is_of_what_is_minimised(quantity: str) -> None:
    costing = Costing(SPEC, WORKLOAD, Objective(minimise=quantity, hardware="h100-sxm"))  # type: ignore[arg-type]
    figures = costing.figures(SCHEDULE)
    named = {"flops": "flops", "kv": "kv_mb", "prefill-ms": "prefill_ms", "latency": "latency_ms"}[quantity]
    assert costing.share(figures) == getattr(figures, named) / getattr(costing.dense, named)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"minimise": "joy"}, "'joy' cannot be minimised"),
        ({"max_flops": 1.5}, "more than the dense model needs"),
        ({"max_flops": 0}, "--max-flops 0 cannot be met"),
        ({"max_kv_mb": -1}, "--max-kv-mb -1"),
        ({"max_latency_ms": 5}, "a time needs hardware"),
        ({"minimise": "latency"}, "a time needs hardware"),
        ({"hardware": "nope", "max_latency_ms": 5}, "no hardware row or file 'nope'"),
        ({"portable": "vlm"}, "no engine 'vlm'"),
        ({"questions": 0}, "0 questions"),
    ],
)
def test_objectives_that_make_no_sense(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Objective(**wrong)  # type: ignore[arg-type]


def test_a_breach_says_by_how_much() -> None:
    costing = Costing(SPEC, WORKLOAD, Objective(max_flops=0.3, max_kv_mb=100))
    (breach,) = costing.breaches(costing.dense)
    assert (breach.constraint, breach.value) == ("--max-flops", 1.0)
    assert str(breach) == "--max-flops 0.3 is exceeded by 0.7" and breach.excess == pytest.approx(7 / 3)


def test_a_constraint_is_met_by_the_plan() -> None:
    bound = 0.5 * Costing(SPEC, WORKLOAD, Objective()).dense.kv_mb
    free = decided(WORLD, 256, rng())
    tight = decided(WORLD, 256, rng(), objective=Objective(max_kv_mb=bound))
    costing = Costing(SPEC, WORKLOAD, Objective(max_kv_mb=bound))
    assert tight.proven and not costing.breaches(costing.figures(tight.schedule))
    assert free.proven and costing.share(costing.figures(free.schedule)) < 0.5


def test_a_ladder_is_of_what_is_minimised() -> None:
    found = decided(WORLD, 256, rng(), objective=Objective(minimise="kv"))
    costing = Costing(SPEC, WORKLOAD, Objective())
    assert found.proof is not None and found.proof.tested
    for one in found.proof.tested:
        assert one.rung.flops == costing.figures(one.rung.schedule).kv_mb / costing.dense.kv_mb


def test_only_what_an_engine_can_run() -> None:
    space = Space(PROFILE, Costing(SPEC, WORKLOAD, Objective(portable="vllm")))
    assert space.families and all(one.schedule.before_decoder for family in space.families for one in family.members)
    found = decided(WORLD, 256, rng(), objective=Objective(portable="vllm"))
    assert found.proven and found.schedule.before_decoder


def test_a_constraint_that_nothing_meets_is_refused_before_anything_runs() -> None:
    with pytest.raises(CalibrationError, match=r"--max-kv-mb 0\.0001 is exceeded by .* by the nearest"):
        decided(WORLD, 256, rng(), objective=Objective(max_kv_mb=0.0001))


def test_nothing_is_laid_over_anything_where_a_candidate_alone_meets_the_constraints(monkeypatch) -> None:
    """Thousands of compositions, most of which nobody would ask for."""
    space = Space(PROFILE, Costing(SPEC, WORKLOAD, Objective(max_flops=0.5)))
    monkeypatch.setattr(space, "together", lambda family, fixed: pytest.fail("laid over"))
    check_constraints(space)


def test_a_constraint_that_only_bad_candidates_meet_binds_and_says_by_how_much() -> None:
    hard = World("hard", entry={"": (0.5, 4.0)}, inner={"": (0.5, 4.0)}, exit=(9.0, 5.0)).population()
    with pytest.raises(CalibrationError, match=r"(exceeded by|not proven)") as caught:
        decided(hard, 256, rng(), objective=Objective(max_flops=0.2))
    assert "--best-effort" in str(caught.value)


def test_the_best_effort_is_taken_where_nothing_is_proven() -> None:
    lossy = World("lossy", entry={"": (0.05, 3.0)}, any_change=0.03).population()
    asked, best = (decided(lossy, 256, rng(), Demand(best_effort=effort)) for effort in (False, True))
    assert asked.schedule.empty and not asked.proven and "is not: the plan is dense" in asked.notes[-2]
    assert not best.proven and not best.schedule.empty
    assert best.proof is not None and str(best.policy) == best.proof.best.rung.policy


def test_measured_times_decide_among_the_finalists() -> None:
    """A clock to which everything before the decoder is slow: the plan then works inside it."""
    asked: list[int] = []

    def timer(schedules: list[object]) -> list[float]:
        asked.append(len(schedules))
        return [50.0 if one.entry is not None else 100.0 - len(one.stages) for one in schedules]  # type: ignore[attr-defined]

    objective = Objective(minimise="prefill-ms", hardware="measured", max_latency_ms=98.5)
    found = decided(WORLD, 256, rng(), objective=objective, effort=Effort(timer=timer))  # type: ignore[arg-type]
    assert found.schedule.entry is not None and sum(asked) <= 13


def test_dense_is_no_candidate() -> None:
    space = Space(PROFILE, Costing(SPEC, WORKLOAD, Objective()))
    assert space.candidate(parse("dense")) is None
    assert space.candidate(FastV(k=LAYERS + 1)) is None, "outside the model"
    assert dense(LAYERS).empty
