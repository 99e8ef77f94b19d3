"""The ladder that is frozen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calibrate.deciding.curve import Curve
from calibrate.deciding.decide import _usable
from calibrate.deciding.ladder import _chances, _worth, ladder
from calibrate.deciding.objective import Costing, Objective
from calibrate.deciding.search import Line, Search
from calibrate.deciding.space import Family, Space
from calibrate.deciding.trials import Trials
from planner.policies import parse
from tests.planted import EASY, PROFILE, SPEC, WORKLOAD, Drawn, planted_space, searched


@pytest.fixture(scope="module")
def space() -> Space:
    return planted_space()


def exhaustive(lines: list[Line], certify: int, misses: int, rungs: int) -> float:
    """The worth of the best ladder of so many rungs, each rung tried."""
    everyone = [one for line in lines for one in line.members]
    candidates, chances = _chances(lines, certify, misses, set(map(id, everyone)), 0)
    saved = np.array([1 - one.share for one in candidates])
    pairs = map(list, itertools.combinations(np.argsort(saved), rungs))
    return max(_worth(saved[chosen], chances[:, chosen]) for chosen in pairs)


def test_a_ladder_is_worth_nearly_what_the_best_is(space: Space) -> None:
    search = searched(space, EASY)
    line = max(search.lines, key=lambda one: len(one.seen))
    rungs = ladder([line], 213, 2, line.members)
    chances = _chances([line], 213, 2, set(map(id, rungs)), 0)
    saved = np.array([1 - one.share for one in chances[0]])
    order = np.argsort(saved)
    worth = _worth(saved[order], chances[1][:, order])
    assert len(rungs) >= 2 and worth >= exhaustive([line], 213, 2, 2) - 1e-9
    assert [one.share for one in rungs] == sorted((one.share for one in rungs), reverse=True)


def test_a_rung_that_is_safer_than_a_cheaper_one_adds_no_risk() -> None:
    saved = np.array([0.5, 0.7, 0.8])
    falling, riskier_first = np.array([[0.9, 0.6, 0.5]]), np.array([[0.6, 0.9, 0.5]])
    assert _worth(saved, falling) == pytest.approx(0.5 * 0.9 + 0.2 * 0.6 + 0.1 * 0.5)
    assert _worth(saved, riskier_first) == pytest.approx(0.5 * 0.6 + 0.2 * 0.6 + 0.1 * 0.5)
    drawn = np.vstack([falling, [[0.1, 0.9, 0.7]]])
    assert _worth(saved, drawn) == pytest.approx(0.5 * 0.5 + 0.2 * (0.6 + 0.1) / 2 + 0.1 * (0.5 + 0.1) / 2)


def laid(space: Space) -> tuple[Line, list[Line]]:
    """A family before the decoder, of which the cheapest half lost 4 of 100 and the dearest none, and others laid over
    its cheapest member, which ran on few samples and lost none."""
    entry = next(one for one in space.families if one.kinds == {"entry"} and len(one.members) > 4)
    first = Line(entry, lambda candidate: True, Curve([one.dose for one in entry.members]))
    for member, lost in ((0, 4), (len(entry.members) - 1, 0)):
        first.learn(member, np.array([1.0] * lost + [0.0] * (100 - lost)), 0.02)
    others = [space.together(one, entry.members[0]) for one in space.families if not one.kinds & entry.kinds]
    lines = [Line(one, lambda candidate: True, Curve([m.dose for m in one.members])) for one in others if one]
    for line in lines:
        line.learn(len(line.members) - 1, np.zeros(8), 0.02)
    return first, lines


def test_a_part_is_not_thought_safe_because_many_things_are_made_of_it(space: Space) -> None:
    first, lines = laid(space)
    assert len(lines) > 5
    part = first.members[0]
    alone, among = (
        {one.name: chance for one, chance in zip(found, chances.mean(axis=0), strict=True)}
        for found, chances in (
            _chances(given, 149, 1, {id(one) for line in given for one in line.members}, 0)
            for given in ([first], [first, *lines])
        )
    )
    assert among[part.name] == pytest.approx(alone[part.name], abs=0.01) and alone[part.name] < 0.2
    assert all(among[one.name] <= among[part.name] for line in lines for one in line.members)


def test_a_rung_may_be_dearer_than_what_ran_on_all_samples_when_no_runs_are_left(space: Space) -> None:
    """A rung that nobody looked at ends the test where its family is worse than it looked on a few samples."""
    search = Search(space, Trials(Drawn(EASY.population(), 100, np.random.default_rng(0))), 0.02, 0, 149, 1)
    line = Line(space.families[0], lambda candidate: True, Curve([one.dose for one in space.families[0].members]))
    assert _usable(search, line) == []
    line.learn(3, np.zeros(20), 0.02)
    assert _usable(search, line) == [line.members[3]]
    line.learn(3, np.zeros(100), 0.02)
    assert _usable(search, line) == list(line.members[3:])
    line.give_up(3)
    assert _usable(search, line) == [], "what is hopeless speaks for nothing that is dearer"


def test_where_dropping_more_may_win_back_more_every_rung_has_run() -> None:
    """Behind much irrelevant text, context pruning at a low rate lost 0.14 where a high one lost 0.02."""
    space = Space(PROFILE, Costing(SPEC, WORKLOAD.model_copy(update={"text_tokens": 200}), Objective()))
    rates = (space.candidate(parse(f"context:rate={rate},layers=3,protect=20")) for rate in (0.9, 0.6, 0.3))
    search = Search(space, Trials(Drawn(EASY.population(), 100, np.random.default_rng(0))), 0.02, 0, 149, 1)
    family = Family("context", tuple(one for one in rates if one))
    line = Line(family, lambda candidate: True, Curve([one.dose for one in family.members]))
    line.learn(1, np.zeros(100), 0.02)
    assert len(family.members) == 3 and _usable(search, line) == [family.members[1]]
    line.learn(2, np.ones(100), 0.02)
    assert _usable(search, line) == [family.members[1]], "what drops less may be hopeless alone"


def test_where_nothing_can_pass_there_is_no_ladder(space: Space) -> None:
    search = searched(space, EASY)
    assert ladder(search.lines, 40, -1, [one for line in search.lines for one in line.members]) == []
