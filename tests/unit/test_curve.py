"""What is believed of a family: against sums written out by hand, and in the limit of many samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibrate.deciding.curve import _PRIOR, FLOOR, FLOORS, MIDDLE, SLOPE, Curve

DOSES = [math.log(share) for share in (0.02, 0.05, 0.1, 0.3, 0.7)]
NONE = np.eye(len(FLOORS))[0]


def loss(point: int, member: int) -> float:
    fallen = 1 / (1 + math.exp(SLOPE[point] * (DOSES[member] - MIDDLE[point])))
    return float(FLOOR[point] + (1 - FLOOR[point]) * fallen)


def test_what_was_seen_weighs_as_the_samples_doses_do() -> None:
    """10 samples: 4 lost at the first member and 1 at the third; so 6 survive the first, 3 fall between, 1 above."""
    curve = Curve(DOSES, NONE)
    curve.learn({0: (10, 0.4), 2: (10, 0.1)})
    weights = []
    for point in range(len(MIDDLE)):
        first, third = loss(point, 0), loss(point, 2)
        likely = (
            6 * math.log(max(1 - first, 1e-300))
            + 3 * math.log(max(first - third, 1e-300))
            + math.log(max(third, 1e-300))
        )
        weights.append(math.exp(likely + _PRIOR[point]) if FLOOR[point] == 0 else 0.0)
    expected = np.array(weights) / sum(weights)
    assert curve.weights == pytest.approx(expected, abs=1e-9)
    below = [sum(w for p, w in enumerate(expected) if loss(p, m) <= 0.05) for m in range(len(DOSES))]
    assert curve.below(0.05) == pytest.approx(below, abs=1e-9)


def test_a_dearer_member_never_loses_more() -> None:
    curve = Curve(DOSES)
    curve.learn({1: (8, 0.25)})
    assert (np.diff(curve.below(0.02)) >= 0).all() and (np.diff(curve.mean()) <= 0).all()
    assert (np.diff(curve.quantiles(np.linspace(0.01, 0.99, 50)), axis=1) <= 0).all()


def test_quantiles_go_from_good_to_bad_luck_and_have_the_mean() -> None:
    curve = Curve(DOSES)
    curve.learn({2: (20, 0.1)})
    found = curve.quantiles((np.arange(4000) + 0.5) / 4000)
    assert (np.diff(found.mean(axis=1)) >= 0).all()
    assert found.mean(axis=0) == pytest.approx(curve.mean(), abs=2e-3)


def test_many_samples_overrule_what_was_believed_before() -> None:
    truth = [1 / (1 + math.exp(3 * (dose - math.log(0.2)))) for dose in DOSES]
    curve = Curve(DOSES)
    curve.learn({member: (20_000, truth[member]) for member in range(len(DOSES))})
    assert curve.mean() == pytest.approx(truth, abs=0.03)


def test_losses_far_above_the_limit_tell_about_those_below_it() -> None:
    """A member that lost nothing is safer where one with a fifth of its tokens lost nothing either."""
    alone, steep, flat = Curve(DOSES, NONE), Curve(DOSES, NONE), Curve(DOSES, NONE)
    alone.learn({4: (40, 0.0)})
    steep.learn({4: (40, 0.0), 2: (40, 0.0)})
    flat.learn({4: (40, 0.0), 2: (40, 0.2)})
    chances = [float(curve.below(0.01)[4]) for curve in (flat, alone, steep)]
    assert chances[0] < chances[1] < chances[2]


def test_noise_that_rises_with_the_dose_is_one_level() -> None:
    """Losses on the same samples cannot rise with the dose: what looks so is put together."""
    rising, level = Curve(DOSES), Curve(DOSES)
    rising.learn({1: (20, 0.1), 3: (20, 0.2)})
    level.learn({1: (20, 0.15), 3: (20, 0.15)})
    assert rising.weights == pytest.approx(level.weights)


def test_a_composition_loses_what_its_fixed_part_loses() -> None:
    fixed = Curve(DOSES, NONE)
    fixed.learn({3: (400, 0.08)})
    assert fixed.floors(3).argmax() == len(FLOORS) - 1 and fixed.floors(3).sum() == pytest.approx(1)
    laid = Curve(DOSES, fixed.floors(3))
    assert (laid.mean() > 0.04).all()


def test_a_composition_falls_as_the_family_that_is_laid_over_something() -> None:
    origin = Curve(DOSES, NONE)
    origin.learn({1: (40, 1.0), 3: (40, 0.9), 4: (40, 0.0)})
    fresh, laid = Curve(DOSES), Curve(DOSES, prior=origin)
    assert laid.mean()[3] > fresh.mean()[3] + 0.2
    floors = [[curve.weights[floor == FLOOR].sum() for floor in FLOORS] for curve in (fresh, laid)]
    assert floors[0] == pytest.approx(floors[1]), "of its floor nothing is known by that"


def test_accuracy_may_rise() -> None:
    curve = Curve(DOSES)
    curve.learn({2: (30, -0.1)})
    assert curve.below(0.02)[2] > 0.5


def test_a_floor_that_fades_is_not_ruled_out_by_few_samples_and_is_less_where_more_is_kept() -> None:
    doses = np.log([0.1, 0.2, 0.4, 0.8])
    bare, fading = Curve(doses, NONE), Curve(doses, fading=True)
    for curve in (bare, fading):
        curve.learn({0: (107, 0.4), 1: (107, 0.0)})
    safe, hedged = (curve.below(0.01) for curve in (bare, fading))
    assert hedged[1] < safe[1] and np.all(np.diff(hedged[1:]) >= 0)
    assert 0.5 < hedged[2] < hedged[3], "the same samples lost nothing, and four fifths of the tokens are safer"
    assert Curve([0.0], fading=True).mean()[0] == pytest.approx(Curve([0.0], NONE).mean()[0]), "none at the whole dose"
