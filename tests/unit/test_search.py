"""The space of candidates, the search over it, and the ladder that is frozen."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from calibrate.deciding.curve import Curve
from calibrate.deciding.ladder import ladder
from calibrate.deciding.objective import Costing, Objective, profile_workload
from calibrate.deciding.search import Line, Search, hopeless, levels
from calibrate.deciding.space import Family, Space, parts
from calibrate.deciding.trials import Trials
from planner.errors import ExtensionError, InputError
from planner.policies import VAR, Context, FastV, VisiPruner, parse
from planner.policies.proposals import budgets, deepest, earliest
from planner.profile import ProbeResult
from planner.schedule import Schedule, Stage
from tests.planted import LAYERS, SPEC, Drawn, World, curve, planted_profile

PROFILE = planted_profile()
WORKLOAD = profile_workload(PROFILE)


def made(policy: str) -> Schedule:
    return parse(policy).schedule(SPEC, WORKLOAD)


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(PROFILE, Costing(SPEC, WORKLOAD, Objective()))


# -- space -------------------------------------------------------------------------------------------------------------


def test_members_of_a_family_are_nested_and_ordered_by_cost(space: Space) -> None:
    population = World("any").population()
    for family in space.families:
        shares = [member.share for member in family.members]
        assert shares == sorted(set(shares)) and shares[-1] < 1
        lost = [population.expected(member.schedule) for member in family.members]
        assert all(cheap >= dear for cheap, dear in itertools.pairwise(lost)), family.name


def test_every_kind_of_policy_proposes(space: Space) -> None:
    names = {family.members[0].name.partition(":")[0] for family in space.families}
    assert {"prellm", "fastv", "pyramiddrop", "fitprune", "visipruner", "vtw"} <= names
    assert not {"random", "dense", "var", "context"} & names, "controls, and what changes answers on purpose"


def test_policies_of_quality_are_searched_for_accuracy_alone() -> None:
    sinks = ProbeResult(n=4, settings={}, values={"sink_dims": [5], "tau": 4.0})
    profile = PROFILE.model_copy(update={"probes": {**PROFILE.probes, "sinks": sinks}})
    found = list(VAR.candidates(profile, SPEC))
    assert {one.dims for one in found} == {(5,)} and {one.tau for one in found} == {4.0} and len(found) == 6
    auto = parse("var:dims=auto,p=0.3")
    assert auto.resolve(SPEC, WORKLOAD, profile) == parse("var:dims=5,tau=4,p=0.3") and parse(str(auto)) == auto
    assert auto.schedule(SPEC, None, profile) == parse("var:dims=5,tau=4,p=0.3").schedule(SPEC)
    for lacking in (None, PROFILE):
        with pytest.raises(InputError, match="sink dimensions"):
            auto.schedule(SPEC, None, lacking)
    costing = Costing(SPEC, WORKLOAD, Objective())
    kinds = [{k for f in Space(profile, costing, goal).families for k in f.kinds} for goal in (False, True)]
    assert "weights" not in kinds[0] and "weights" in kinds[1]


def test_context_is_pruned_around_the_rate_that_was_measured() -> None:
    fit = {"coefficients": [0.0, 0.0, 0.4], "shortest": 10, "longest": 900, "highest": 0.9, "r2": None}
    probe = ProbeResult(n=4, settings={}, values={"fit": fit, "layers": {"10 of 32": 3}})
    prompt = PROFILE.prompt.model_copy(update={"text_tokens": 200})
    profile = PROFILE.model_copy(update={"probes": {**PROFILE.probes, "context": probe}, "prompt": prompt})
    found = list(Context.candidates(profile, SPEC))
    assert [one.rate for one in found] == [0.2, 0.4, 0.6] and {(one.layers, one.protect) for one in found} == {(3, 10)}
    assert not list(Context.candidates(PROFILE, SPEC))
    families = Space(profile, Costing(SPEC, profile_workload(profile), Objective()), accuracy=True).families
    (pruned,) = (one for one in families if one.kinds == {"text"})
    assert [one.dose for one in pruned.members] == pytest.approx([math.log(left) for left in (0.4, 0.6, 0.8)])


def test_what_changes_answers_on_purpose_may_win_back_what_a_part_loses() -> None:
    """Text that leads astray, dropped: ``dart:keep=0.1`` alone may lose answers that it keeps with less text."""
    space = Space(PROFILE, Costing(SPEC, WORKLOAD.model_copy(update={"text_tokens": 200}), Objective()))
    dart, context = (space.candidate(parse(name)) for name in ("dart:keep=0.1", "context:rate=0.5,layers=3,protect=20"))
    other = space.candidate(parse("visipruner:filter=3,keep=4"))
    assert dart and context and other
    won_back, plain = (space.together(Family("dart", (dart,)), fixed) for fixed in (context, other))
    assert won_back and not won_back.members[0].parts and not parts(won_back.members[0].schedule)
    assert plain and plain.members[0].parts == (dart, other) and dart.schedule in parts(plain.members[0].schedule)


def test_context_is_pruned_where_no_prompt_is_short() -> None:
    """The shortest prompt, a document itself, would be taken for question and role tokens: nothing would be left."""
    fit = {"coefficients": [0.0, 0.0, 0.4], "shortest": 10, "longest": 900, "highest": 0.9, "r2": None}
    probe = ProbeResult(n=4, settings={}, values={"fit": fit, "layers": {"10 of 32": 3}})
    text = ProbeResult(n=4, settings={}, values={"text": {"least": 200.0}})
    probes = {**PROFILE.probes, "context": probe, "prompt": text}
    prompt = PROFILE.prompt.model_copy(update={"text_tokens": 200})
    profile = PROFILE.model_copy(update={"probes": probes, "prompt": prompt})
    found = list(Context.candidates(profile, SPEC))
    assert [(one.protect, one.rate) for one in found] == [(p, r) for p in (16, 32, 64, 128) for r in (0.2, 0.4, 0.6)]


def test_thresholds_are_proposed_for_each_window_from_what_influence_saw() -> None:
    values = {"threshold": [0.1 * (i + 1) for i in range(LAYERS)], "kept": [0.05] * LAYERS, "most": [0.21] * LAYERS}
    tighter = {"threshold": [1.0] * LAYERS, "kept": [0.001] * LAYERS, "most": [0.01] * LAYERS}
    influence = PROFILE.probes["influence"]
    told = influence.model_copy(update={"values": {**influence.values, "adaptive": {"0.05": values, "0.01": tighter}}})
    profile = PROFILE.model_copy(update={"probes": {**PROFILE.probes, "influence": told}})
    found = [one for one in VisiPruner.candidates(profile, SPEC) if one.threshold is not None]
    assert {one.filter for one in found} == {one.filter for one in VisiPruner.candidates(PROFILE, SPEC)}
    for one in found:
        assert one.relative and one.rank_by == "l2"
        loose = (0.1 * (one.filter + 1), 31, 7.2)  # 0.21 and 0.05 of 144 tokens
        assert (one.threshold, one.at_most, one.expected) in ((pytest.approx(loose[0]), *loose[1:]), (1.0, 2, 1.0))
    space = Space(profile, Costing(SPEC, WORKLOAD, Objective()))
    adaptive = [family for family in space.families if "threshold=" in family.members[0].name]
    assert adaptive and all(len(family.members) == 2 for family in adaptive if "filter=9" not in family.name)
    assert not any(one.threshold for one in VisiPruner.candidates(PROFILE, SPEC))


def test_windows_follow_the_curves() -> None:
    found = list(VisiPruner.candidates(PROFILE, SPEC))
    closed = {one.filter for one in found if (one.visual_attention, one.text_to_visual) == ("self", "none")}
    assert closed - {0} == {2, 3}, "as deep as the curve says, or half as deep"
    assert {one.keep for one in found} == set(budgets(PROFILE))
    untouched = {one.filter for one in found if one.visual_attention == one.text_to_visual == "full"}
    assert untouched == {1, 2, 5}


def test_curves_are_read_by_the_upper_end_of_their_intervals() -> None:
    assert deepest(curve(1, [1, 1, 0.9, 1], n=20)) == 4, "18 of 20 may be 0.95"
    assert deepest(curve(1, [1, 1, 0.6, 1], n=20)) == 2
    assert earliest(curve(0, [0.5, 1, 0.9, 1], n=20), 4) == 1 and earliest(curve(0, [0.5] * 4), 4) == 4


def test_budgets_are_numbers_where_prompts_are_alike() -> None:
    assert budgets(PROFILE)[0] == 3 and all(isinstance(one, int) for one in budgets(PROFILE))
    assert max(budgets(planted_profile(least=100))) < 1


def test_parts_do_less_each() -> None:
    whole = made("prellm:keep=0.5+visipruner:filter=3,keep=10,exit=7,visual_attention=self")
    entry, rules, exit_alone = parts(whole)
    assert entry == made("prellm:keep=0.5") and exit_alone == made("vtw:k=7")
    blind = Stage(first=0, last=3, visual_attention="self", text_to_visual="none", cache_visual="none")
    assert rules.stages[0] == blind and not rules.selects and rules.stages[-1].last == LAYERS
    assert parts(exit_alone) == [] and parts(made("fastv:k=2,ratio=0.5")) == []


def test_compositions_name_what_comes_first_first(space: Space) -> None:
    window = next(family for family in space.families if family.members[0].name.startswith("visipruner:filter=0"))
    entry = next(family for family in space.families if family.members[0].name.startswith("prellm"))
    for family, fixed in ((window, entry.members[-1]), (entry, window.members[0])):
        found = space.together(family, fixed)
        assert found is not None and found.origin is family and found.fixed is fixed
        for one in found.members:
            assert one.name.startswith("prellm") and one.schedule == made(one.name)
            assert one.share < min(part.share for part in one.parts)
    assert space.together(window, window.members[0]) is None, "two of a kind"


def test_a_broken_package_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ExtensionError("the package toy adds 'toy', which cannot be used", "Mend it")
    monkeypatch.setattr("calibrate.deciding.space.usable", lambda: iter([broken, FastV]))
    found = Space(PROFILE, Costing(SPEC, WORKLOAD, Objective()))
    assert "the package toy" in found.notes[0] and len(found.families) == 2


# -- trials ------------------------------------------------------------------------------------------------------------


def test_losses_are_measured_once_and_only_where_they_are_missing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    drawn = Drawn(World("any").population(), 20, np.random.default_rng(0))
    first = Trials(drawn, tmp_path / "trials.json", {"profile": "p"})
    schedule = made("fastv:k=1,ratio=0.9")
    assert (first.losses(schedule, 8) == drawn.losses(schedule, list(range(8)))).all()
    first.losses(schedule, 20)
    first.losses(schedule, 8)
    assert [n for _, n in drawn.executed] == [8, 8, 12] and (first.executed, first.passes) == (1, 20)
    first.save()
    again = Trials(drawn, tmp_path / "trials.json", {"profile": "p"})
    assert (again.losses(schedule, 20) == first.losses(schedule, 20)).all() and len(drawn.executed) == 3
    other = Trials(drawn, tmp_path / "trials.json", {"profile": "another"})
    other.losses(schedule, 8)
    assert len(drawn.executed) == 4, "losses of another run are let go"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"run": 3}', json.dumps({"run": "x", "losses": {"a": "b"}})])
def test_a_damaged_file_is_measured_again(tmp_path, content: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trials.json"
    path.write_text(content)
    drawn = Drawn(World("any").population(), 8, np.random.default_rng(0))
    assert len(Trials(drawn, path).losses(made("fastv"), 8)) == 8


# -- search ------------------------------------------------------------------------------------------------------------


def searched(space: Space, world: World, samples: int = 40, measure: int = 160, seed: int = 0) -> Search:
    drawn = Drawn(world.population(), samples, np.random.default_rng(seed))
    search = Search(space, Trials(drawn), 0.02, measure, 149, 1)
    search.run()
    return search


EASY = World("easy", entry={"": (0.03, 4.0)}, inner={"": (0.1, 4.0)}, exit=(6.5, 20.0))


def test_runs_are_bounded_and_the_same_under_one_seed(space: Space) -> None:
    one, other = (searched(space, EASY, measure=60) for _ in range(2))
    assert one.trials.executed <= 60
    assert [line.seen.keys() for line in one.lines] == [line.seen.keys() for line in other.lines]


def test_every_layer_of_withdrawal_is_looked_at(space: Space) -> None:
    found = searched(space, EASY)
    (line,) = (line for line in found.lines if line.family.falls_at_once)
    assert line.members[0].name.startswith("vtw") and line.seen.keys() >= set(range(line.lost, len(line.members)))


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
    assert line.lost == 4
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


# -- ladder ------------------------------------------------------------------------------------------------------------


def exhaustive(lines: list[Line], certify: int, misses: int, rungs: int) -> float:
    """The worth of the best ladder of so many rungs, each rung tried."""
    from calibrate.deciding.ladder import _chances, _worth

    everyone = [one for line in lines for one in line.members]
    candidates, chances = _chances(lines, certify, misses, set(map(id, everyone)), 0)
    saved = np.array([1 - one.share for one in candidates])
    pairs = map(list, itertools.combinations(np.argsort(saved), rungs))
    return max(_worth(saved[chosen], chances[:, chosen]) for chosen in pairs)


def test_a_ladder_is_worth_nearly_what_the_best_is(space: Space) -> None:
    from calibrate.deciding.ladder import _chances, _worth

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
    from calibrate.deciding.ladder import _worth

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
    from calibrate.deciding.ladder import _chances

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


def test_a_rung_may_be_dearer_than_what_ran_when_no_runs_are_left(space: Space) -> None:
    from calibrate.deciding.decide import _usable

    search = Search(space, Trials(Drawn(EASY, 100, np.random.default_rng(0))), 0.02, 0, 149, 1)
    line = Line(space.families[0], lambda candidate: True, Curve([one.dose for one in space.families[0].members]))
    assert _usable(search, line) == []
    line.learn(3, np.zeros(20), 0.02)
    assert _usable(search, line) == list(line.members[3:])


def test_where_nothing_can_pass_there_is_no_ladder(space: Space) -> None:
    search = searched(space, EASY)
    assert ladder(search.lines, 40, -1, [one for line in search.lines for one in line.members]) == []
