"""Decisions keep their promise, and are cheap: a small part of `tests.simulate_decisions`."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from calibrate.deciding.space import Space
from tests.planted import World, decided
from tests.simulate_decisions import WORLDS, Kept, add_runs, most, report, simulate, space

RUNS = 12


@pytest.fixture(scope="module")
def shared() -> Space:
    return space()


@pytest.fixture(scope="module")
def calibrations(shared: Space) -> Callable[[World], list[tuple[float, bool]]]:
    """What calibrations in a world cost, and whether they broke the promise."""
    kept: dict[str, list[tuple[float, bool]]] = {}

    def found(world: World) -> list[tuple[float, bool]]:
        if world.name not in kept:
            population = world.population()
            kept[world.name] = [simulate(population, 256, run, shared)["calibration"] for run in range(RUNS)]
        return kept[world.name]

    return found


@pytest.mark.parametrize("world", [WORLDS[1], WORLDS[4]], ids=lambda world: world.name)
def test_few_runs_ship_a_plan_below_what_was_promised(world, calibrations) -> None:
    assert sum(violated for _, violated in calibrations(world)) <= most(RUNS)


def test_a_plan_is_found_where_there_is_a_good_one(calibrations) -> None:
    assert np.mean([cost for cost, _ in calibrations(WORLDS[1])]) < 0.6


def test_a_decision_is_the_same_under_one_seed(shared: Space) -> None:
    population = WORLDS[0].population()
    one, other = (decided(population, 256, np.random.default_rng(3), space=shared) for _ in range(2))
    assert one == other and one.searched > one.executed > 20


def test_few_samples_prove_nothing_and_say_so(shared: Space) -> None:
    found = decided(WORLDS[1].population(), 64, np.random.default_rng(0), space=shared)
    assert found.schedule.empty and found.proof is None and "the plan is dense" in found.notes[-1]


def test_an_interrupted_simulation_goes_on(shared: Space) -> None:
    cells = [(WORLDS[1], 64)]
    whole: Kept = {}
    for run in range(2):
        add_runs(whole, run, cells, shared)
    some: Kept = {name: outcomes[:1] for name, outcomes in whole.items()}
    before = json.dumps(some)
    add_runs(some, 0, cells, shared)
    assert json.dumps(some) == before, "run 0 is there"
    add_runs(some, 1, cells, shared)
    assert some == whole and "| inside the decoder | 64 | 2 |" in report(some, cells)
