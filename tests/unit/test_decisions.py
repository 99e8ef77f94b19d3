"""Decisions keep their promise, and are cheap: a small part of `tests.simulate_decisions`."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.deciding.space import Space
from tests.planted import World, decided
from tests.simulate_decisions import WORLDS, most, simulate, space

RUNS = 12


@pytest.fixture(scope="module")
def shared() -> Space:
    return space()


@pytest.mark.parametrize("world", [WORLDS[1], WORLDS[4]], ids=lambda world: world.name)
def test_few_runs_ship_a_plan_below_what_was_promised(world: World, shared: Space) -> None:
    found = simulate(world, 256, RUNS, shared)
    assert found["calibration"].violations <= most(RUNS)


def test_a_plan_is_found_where_there_is_a_good_one(shared: Space) -> None:
    found = simulate(WORLDS[1], 256, RUNS, shared)
    assert np.mean(found["calibration"].costs) < 0.6


def test_a_decision_is_the_same_under_one_seed(shared: Space) -> None:
    population = WORLDS[0].population()
    one, other = (decided(population, 256, np.random.default_rng(3), space=shared) for _ in range(2))
    assert one == other and one.searched > one.executed > 20


def test_few_samples_prove_nothing_and_say_so(shared: Space) -> None:
    found = decided(WORLDS[1].population(), 64, np.random.default_rng(0), space=shared)
    assert found.schedule.empty and found.proof is None and "the plan is dense" in found.notes[-1]
