"""The search: what is executed next, and what is learned from it."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.deciding.curve import Curve
from calibrate.deciding.objective import Costing, Objective
from calibrate.deciding.search import Line, Search, hopeless, levels
from calibrate.deciding.space import Family, Space, parts
from calibrate.deciding.trials import Trials
from planner.policies import parse
from planner.schedule import Schedule
from tests.planted import EASY, PROFILE, SPEC, WORKLOAD, Drawn, World, made, planted_space, searched


@pytest.fixture(scope="module")
def space() -> Space:
    return planted_space()


def test_runs_are_bounded_and_the_same_under_one_seed(space: Space) -> None:
    one, other = (searched(space, EASY, measure=60) for _ in range(2))
    assert one.trials.executed <= 60
    assert [line.seen.keys() for line in one.lines] == [line.seen.keys() for line in other.lines]


def test_every_layer_of_withdrawal_is_looked_at(space: Space) -> None:
    found = searched(space, EASY)
    (line,) = (line for line in found.lines if line.family.falls_at_once)
    assert line.members[0].name.startswith("vtw") and line.seen.keys() >= set(np.flatnonzero(~line.given_up))


def test_bad_luck_on_few_samples_is_not_the_end_of_a_family(space: Space) -> None:
    """All but one family lose often, and that one lost on one of the first samples: it is what is run to the end."""
    drawn = Drawn(World("bad", entry={"": (0.9, 8.0)}, inner={"": (0.9, 8.0)}, exit=(9.5, 20.0)).population(), 100,
                  np.random.default_rng(0))  # fmt: skip
    good = next(one for one in space.families if one.kinds == {"entry"})
    names = {one.schedule for one in good.members}
    run = drawn.losses

    def losses(schedule: Schedule, indices: list[int] | None = None) -> np.ndarray:
        found = run(schedule, indices)
        if schedule not in names:
            return found
        return np.array([float(i == 3) for i in (range(100) if indices is None else indices)])

    drawn.losses = losses  # type: ignore[method-assign]
    search = Search(space, Trials(drawn), 0.02, 160, 149, 1)
    search.run()
    line = next(line for line in search.lines if line.family is good)
    assert max(len(seen) for seen in line.seen.values()) == 100


def test_what_a_composition_lost_is_not_said_of_its_parts(space: Space) -> None:
    entry = next(one for one in space.families if one.kinds == {"entry"})
    inner = next(one for one in space.families if one.kinds == {"inner"})
    drawn = Drawn(EASY.population(), 40, np.random.default_rng(0))
    for lost in (0, 2):
        drawn.losses = lambda schedule, indices=None, lost=lost: np.array(  # type: ignore[method-assign,misc]
            [float(i < lost) for i in (range(40) if indices is None else indices)]
        )
        search = Search(space, Trials(drawn), 0.2, 160, 149, 1)
        first, second = (search._known(search._line(one)) for one in (entry, inner))
        search.lines = [first, second]
        family = space.together(entry, inner.members[-1])
        assert family is not None
        whole = search._known(search._line(family))
        search.execute(whole, 0, 40)
        part = first.members.index(next(one for one in whole.members[0].parts if one in first.members))
        assert (part in first.seen) == (lost == 0) and (len(second.members) - 1 in second.seen) == (lost == 0)


def test_what_may_be_won_back_is_not_expected_to_be_lost() -> None:
    """Half of the answers hang on what ``dart:keep=0.1`` drops, or on text that leads astray: over less text it may
    lose none, over a window it loses them for sure."""
    space = Space(PROFILE, Costing(SPEC, WORKLOAD.model_copy(update={"text_tokens": 200}), Objective()))
    names = ("dart:keep=0.1", "context:rate=0.5,layers=3,protect=20", "visipruner:filter=3,keep=4")
    dart, *others = (Family(name, (one,)) for name in names if (one := space.candidate(parse(name))))
    search = Search(space, Trials(Drawn(EASY.population(), 40, np.random.default_rng(0))), 0.02, 60, 149, 1)
    search.lines = [search._known(search._line(one)) for one in (dart, *others)]
    search.lines[0].learn(0, np.array([1.0, 0.0] * 50), 0.02)
    families = [space.together(other, dart.members[0]) for other in others]
    chances = [float(search._curve(family).below(0.02)[0]) for family in families if family]
    assert chances[0] > 0.2 and chances[1] < 0.01


def test_few_samples_first_and_nothing_is_run_twice(space: Space) -> None:
    found = searched(space, EASY)
    counts = {len(losses) for line in found.lines for losses in line.seen.values()}
    assert counts == {8, 16, 32, 40} and levels(40) == [8, 16, 32, 40] and levels(5) == [5]
    assert found.trials.passes < 0.5 * found.trials.executed * 40


def test_what_drops_more_than_a_hopeless_member_is_not_run(space: Space) -> None:
    drawn = Drawn(EASY.population(), 40, np.random.default_rng(0))
    search = Search(space, Trials(drawn), 0.02, 100, 149, 1)
    family = next(family for family in space.families if family.kinds == {"entry"})
    line = Line(family, search.eligible, Curve([member.dose for member in family.members]))
    line.learn(3, np.ones(8), 0.02)
    assert np.flatnonzero(line.given_up).tolist() == [0, 1, 2, 3]
    assert all(line.imagine(luck, np.ones_like)[1] == 4 for luck in (0.0, 0.5, 0.99)), "the cheapest that is left"
    assert hopeless(np.array([1.0, 1, 0, 0, 0, 0, 0, 0]), 0.02) and not hopeless(np.eye(8)[0], 0.02)


def test_a_part_that_fails_spares_the_whole(space: Space) -> None:
    """An exit at layer 2 loses everything: no composition with it is executed."""
    found = searched(space, EASY)
    ran = [schedule for schedule, _ in found.trials.runner.executed]  # type: ignore[attr-defined]
    early = [one for one in ran if len(parts(one)) and made("vtw:k=3") in parts(one)]
    assert not early


def test_the_best_of_different_kinds_are_laid_over_each_other(space: Space) -> None:
    found = searched(space, EASY, samples=200)
    promising = [line for line in found.lines if any(one.share < 0.2 for one in line.hopeful(found.aim))]
    assert any(line.family.kinds >= {"entry", "exit"} and line.seen for line in promising)
