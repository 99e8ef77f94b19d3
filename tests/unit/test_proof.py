"""Exact tests against enumeration, published sample counts, and planted truths; the ladder stops where it must."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom

from calibrate.deciding.bounds import p_value, upper_bound
from calibrate.deciding.power import aims, allowed, check_promise, few, least, needed, passing, provable
from calibrate.deciding.proof import Rung, prove
from planner.errors import InputError
from planner.schedule import dense
from tests import simulate_proof

LIMIT, CONFIDENCE = 0.02, 0.8


def rung(name="a", flops=1.0):
    return Rung(name, dense(4), flops)


def zeros_but(misses, n=217):
    return np.array([1.0] * misses + [0.0] * (n - misses))


@pytest.mark.parametrize(
    "limit, true, confidence, samples",
    [
        (0.02, 0.01, 0.8, 453), (0.02, 0.01, 0.95, 969), (0.02, 0.005, 0.8, 149), (0.02, 0.005, 0.95, 386),
        (0.05, 0.01, 0.8, 59), (0.05, 0.01, 0.95, 124),
    ],
)  # fmt: skip
def test_needed_samples_are_those_of_the_exact_test(limit, true, confidence, samples):
    def power(n):  # by hand: sum of binomial terms
        def tail(k, p):
            return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

        return tail(max((k for k in range(20) if tail(k, limit) <= 1 - confidence), default=-1), true)

    assert needed(limit, confidence, true, 0.8) == samples
    assert power(samples) >= 0.8 and all(power(n) < 0.8 for n in range(max(1, samples - 60), samples))


def test_misses_that_samples_allow():
    assert (allowed(217, 0.02, 0.8), allowed(212, 0.02, 0.8), allowed(80, 0.02, 0.8), allowed(79, 0.02, 0.8)) == (
        2, 1, 0, -1,
    )  # fmt: skip
    assert least(0.02, 0.8) == 80 and least(0.02, 0.95) == 149 and least(0.5, 0.5) == 1
    assert provable(80, 0.8) <= 0.02 < provable(79, 0.8)
    assert binom.cdf(2, 217, passing(217, 0.02, 0.8, 0.9)) == pytest.approx(0.9)
    assert passing(79, 0.02, 0.8, 0.9) == 0 and aims(79, 0.02, 0.8) == ()
    goals = aims(217, 0.02, 0.8)
    assert list(goals) == sorted(goals) and binom.cdf(2, 217, goals[0]) > 0.999 and goals[-1] < 0.025


def test_what_no_samples_prove_is_refused():
    for limit, confidence in ((0.0, 0.8), (1.0, 0.8), (-97.0, 0.8), (0.02, 0.4), (0.02, 1.0)):
        with pytest.raises(InputError):
            check_promise(limit, confidence)
    with pytest.raises(InputError, match="no samples prove"):
        needed(0.02, 0.8, 0.02)


@pytest.mark.parametrize("level", [0.3, 0.2, 0.05])
@pytest.mark.parametrize(
    "values, chances",
    [
        ((0.0, 0.5, 1.0), (0.7, 0.2, 0.1)), ((0.0, 0.1), (0.0, 1.0)), ((-1.0, 0.0, 1.0), (0.1, 0.6, 0.3)),
        ((0.0, 1.0), (0.8, 0.2)),
    ],
)  # fmt: skip
def test_betting_is_valid_by_enumeration(values, chances, level):
    """All sequences of 8 losses whose expectation is the limit: a false claim is no likelier than the level."""
    limit = float(np.dot(values, chances))
    wrong = 0.0
    for drawn in itertools.product(range(len(values)), repeat=8):
        losses = np.array([values[i] for i in drawn])
        if p_value(losses, limit, binary=False) <= level:
            wrong += math.prod(chances[i] for i in drawn)
    assert wrong <= level + 1e-12


def test_the_bettor_s_stakes_come_from_the_samples_before():
    """By hand, limit 0.5. First stake: Kelly's with mean and second moment as assumed, 1 * 0.5. After a loss of 0, a
    gain of 0.5: (0.5 + 2.5) / (0.25 + 2.5) * 0.5."""
    first = 1 / (0.6 * (1 + 0.5) + 0.4 * (1 + 0.69))
    assert p_value(np.array([0.0]), 0.5, binary=False) == pytest.approx(first)
    second = 1 / (0.6 * (1 + 0.5) * (1 + 3 / 2.75 * 0.5) + 0.4 * (1 + 0.69) ** 2)
    assert p_value(np.array([0.0, 0.0]), 0.5, binary=False) == pytest.approx(second)
    # A loss at the end takes wealth away, but not what was there before it.
    assert p_value(np.array([0.0, 0.0, 1.0]), 0.5, binary=False) == pytest.approx(second)


def test_binomial_p_values_are_tails():
    assert p_value(zeros_but(2), 0.02, binary=True) == pytest.approx(binom.cdf(2, 217, 0.02), rel=1e-12)
    assert p_value(zeros_but(0, 10), 0.5, binary=True) == pytest.approx(2**-10)


def test_bounds_are_where_the_test_turns():
    # Clopper and Pearson's upper limit of 0 in n is 1 - level ** (1 / n).
    assert upper_bound(zeros_but(0, 50), 0.05, 0.02, binary=True) == pytest.approx(1 - 0.05 ** (1 / 50))
    found = upper_bound(zeros_but(3, 50), 0.1, 0.02, binary=True)
    assert binom.cdf(3, 50, found) == pytest.approx(0.1)
    assert upper_bound(np.ones(5), 0.1, 0.02, binary=True) == 1
    losses = np.random.default_rng(0).beta(0.2, 20, 300)
    bound = upper_bound(losses, 0.2, 0.02, binary=False)
    assert losses.mean() < bound < 0.04
    assert upper_bound(losses, 0.01, 0.02, binary=False) > bound
    assert p_value(losses, 0.02, binary=False) <= 0.2 if bound <= 0.02 else p_value(losses, 0.02, binary=False) > 0.2


@pytest.mark.parametrize("binary", [True, False])
def test_bounds_hold_as_often_as_they_say(binary):
    rng = np.random.default_rng(3)
    outside = 0
    for _ in range(300):
        losses = (rng.random(150) < 0.03).astype(float) if binary else rng.beta(0.3, 9.7, 150)
        outside += upper_bound(losses, 0.2, 0.05, binary=binary) < 0.03
    assert outside <= binom.ppf(0.999, 300, 0.2)


def test_the_first_rung_that_is_not_proven_ends_the_ladder():
    ladder = [rung("safe", 0.9), rung("half", 0.5), rung("low", 0.3), rung("lowest", 0.2)]
    missed = {"safe": 0, "half": 2, "low": 3, "lowest": 0}
    asked = []

    def losses(one):
        asked.append(one.policy)
        return zeros_but(missed[one.policy])

    found = prove(ladder, losses, LIMIT, CONFIDENCE, binary=True)
    assert asked == ["safe", "half", "low"]
    assert [one.proven for one in found.tested] == [True, True, False] and found.rungs == 4
    assert found.shipped is not None and found.shipped.rung.policy == "half" and found.shipped.misses == 2
    assert found.best is not None and found.best.rung.policy == "safe"
    assert found.tested[0].bound == pytest.approx(1 - 0.05 ** (1 / 217)), "a quarter of the level for each of four"
    whole = prove(ladder, losses, LIMIT, CONFIDENCE, binary=True, complete=True)
    assert [one.proven for one in whole.tested] == [True, True, False, False], "what comes later stays unproven"
    assert whole.best is not None and whole.best.rung.policy == "lowest", "of equal bounds the cheaper"
    assert prove([], losses, LIMIT, CONFIDENCE, binary=True).shipped is None


def test_questions_about_one_picture_count_once():
    """One picture of 4 questions, all wrong: one observation lost, not four; a fifth of the evidence, not all of it."""
    losses = np.concatenate([np.ones(4), np.zeros(396)])
    pictures = np.repeat(np.arange(100), 4)
    (one,) = prove([rung()], lambda _: losses, 0.05, CONFIDENCE, binary=True, pictures=pictures).tested
    assert (one.n, one.pictures, one.misses, one.loss) == (400, 100, 4, 0.01)
    assert one.p == p_value(np.array([1.0] + [0.0] * 99), 0.05, binary=False)
    # Pictures of unequal numbers of questions weigh the same.
    losses, pictures = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0, 1, 1, 1])
    (one,) = prove([rung()], lambda _: losses, 0.9, CONFIDENCE, binary=True, pictures=pictures).tested
    assert one.loss == 0.5
    (single,) = prove([rung()], lambda _: losses, 0.9, CONFIDENCE, binary=True, pictures=range(4)).tested
    assert single.p == pytest.approx(binom.cdf(1, 4, 0.9))


def test_of_few_pictures_the_first_question_is_counted():
    """40 pictures are fewer than one and a half times the 32 that a limit of 0.05 needs."""
    losses, pictures = np.zeros(160), np.repeat(np.arange(40), 4)
    losses[[1, 6, 8]] = 1  # the second and third question of two pictures, the first of another
    (one,) = prove([rung()], lambda _: losses, 0.05, CONFIDENCE, binary=True, pictures=pictures).tested
    assert one.p == pytest.approx(binom.cdf(1, 40, 0.05)) and one.misses == 3 and one.loss == 3 / 160
    assert (few(47, 0.05, CONFIDENCE), few(48, 0.05, CONFIDENCE)) == (True, False)
    (other,) = prove([rung()], lambda _: losses, 0.05, CONFIDENCE, binary=False, pictures=pictures).tested
    assert other.p == p_value(losses.reshape(40, 4).mean(1), 0.05, binary=False)


def test_a_limit_per_kind_must_hold_for_each():
    losses, kinds = zeros_but(2), ["rare"] * 20 + ["common"] * 197
    (free,) = prove([rung()], lambda _: losses, LIMIT, CONFIDENCE, binary=True, kinds=kinds).tested
    assert free.proven and free.kinds == {"common": 0.0, "rare": 0.1}
    (bound,) = prove([rung()], lambda _: losses, LIMIT, CONFIDENCE, binary=True, kinds=kinds, kind_limit=0.15).tested
    assert not bound.proven and bound.p == pytest.approx(binom.cdf(2, 20, 0.15))
    (wide,) = prove([rung()], lambda _: losses, LIMIT, CONFIDENCE, binary=True, kinds=kinds, kind_limit=0.3).tested
    assert wide.proven


def test_losses_out_of_range_are_refused():
    for binary, losses in ((True, [0.0, 0.5]), (False, [0.0, 1.5]), (False, [math.nan]), (False, [-2.0]), (True, [])):
        with pytest.raises(InputError, match="losses of a"):
            prove([rung()], lambda _, losses=losses: np.array(losses), LIMIT, CONFIDENCE, binary=binary)


def test_false_claims_are_no_likelier_than_promised():
    """Ladders whose every rung is at the limit, correlated: fixed sequences err as often as one test, not as eight."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(300):
        shared = rng.random(217)
        # A sum of uniforms up to 0.7 and 0.3 is below t <= 0.3 with probability t^2 / 0.42: here 0.0201.
        drawn = {str(i): ((0.7 * shared + 0.3 * rng.random(217)) < 0.0919).astype(float) for i in range(8)}
        ladder = [rung(name) for name in drawn]
        found = prove(ladder, lambda one, drawn=drawn: drawn[one.policy], LIMIT, CONFIDENCE, binary=True)
        wrong += found.shipped is not None
    assert wrong <= binom.ppf(0.999, 300, 0.2)


@pytest.mark.parametrize("world", simulate_proof.WORLDS, ids=lambda world: world.name)
def test_planted_truths_are_kept_and_a_wide_ladder_costs_less(world):
    """A quick look at `tests.simulate_proof`: 120 runs with 256 samples."""
    runs = 120
    near, violations = simulate_proof.simulate(world, 256, "half certify, near", runs)
    wide, more = simulate_proof.simulate(world, 256, "most certify, wide", runs)
    assert max(violations, more) <= simulate_proof.most(runs)
    assert world.shuffled or world.truth or wide < near - 0.05
