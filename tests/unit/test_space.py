"""The space of candidates: families, and what they make together."""

from __future__ import annotations

import itertools
import math

import pytest

from calibrate.deciding.objective import Costing, Objective, profile_workload
from calibrate.deciding.space import Family, Space, parts
from planner.errors import ExtensionError, InputError
from planner.policies import VAR, Context, FastV, VisiPruner, parse
from planner.policies.proposals import budgets, deepest, earliest
from planner.profile import ProbeResult
from planner.schedule import Stage
from tests.planted import LAYERS, PROFILE, SPEC, WORKLOAD, World, curve, made, planted_profile, planted_space


@pytest.fixture(scope="module")
def space() -> Space:
    return planted_space()


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
