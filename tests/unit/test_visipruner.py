"""VisiPruner as a schedule: its stages, its options, and what a plan states of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.policies import VisiPruner, parse
from planner.schedule import Count, Fraction, Schedule, Select, Stage, Threshold
from planner.spec import ModelSpec

SPEC = ModelSpec.from_config("llava-1.5-7b")
NOTHING = Select(rank_by="none", keep=Count(count=0))


def made(text: str) -> Schedule:
    return parse(text).schedule(SPEC)


def test_visipruner_stages() -> None:
    shallow = Stage(first=0, last=8, visual_attention="prefix", text_to_visual="none", cache_visual="none")
    select = Select(rank_by="influence_l2", keep=Count(count=10))
    assert made("visipruner:filter=8,keep=10,exit=24").stages == (
        shallow,
        Stage(first=8, last=9, selects=(select,)),
        Stage(first=9, last=24, selects=(NOTHING,)),
        Stage(first=24, last=32),
    )


def test_visipruner_at_its_ends() -> None:
    assert [stage.last for stage in made("visipruner:filter=0,keep=3,exit=9").stages] == [1, 9, 32]
    for open_end in ("visipruner:filter=5,keep=3", "visipruner:filter=5,keep=3,exit=32"):
        assert [stage.last for stage in made(open_end).stages] == [5, 6, 32]
        assert not made(open_end).stages[-1].selects
    assert [stage.last for stage in made("visipruner:filter=31,keep=3").stages] == [31, 32]


def test_visipruner_options() -> None:
    merged = made("visipruner:filter=8,keep=10,merge_first=true").stages
    assert (merged[0].last, merged[0].text_to_visual, merged[1].text_to_visual) == (1, "merge", "none")
    assert [stage.visual_attention for stage in merged[:2]] == ["self", "self"]
    assert made("visipruner:filter=8,text_to_visual=merge").stages[0].visual_attention == "self"
    assert made("visipruner:filter=8,visual_attention=self").stages[0].visual_attention == "self"
    probed = made("visipruner:filter=8,keep=10,exit=24,probe=true").stages
    assert [stage.last for stage in probed] == [8, 24, 32]
    assert probed[0].selects[0].probe
    adaptive = made("visipruner:filter=8,threshold=0.2,at_most=64,expected=10.3,relative=true").stages[1].selects[0]
    assert adaptive.keep == Threshold(threshold=0.2, relative=True, at_most=64, expected=10.3)
    assert made("visipruner:filter=8,rank_by=attention").stages[1].selects[0].rank_by == "last_attention"
    assert made("visipruner:filter=8,text_to_visual=full").stages[0].cache_visual == "all"
    assert made("visipruner:filter=8,filter_cache=kept").stages[1].cache_visual == "kept"
    assert made("visipruner:filter=8,keep=0.1").stages[1].selects[0].keep == Fraction(fraction=0.1)


def test_a_plan_states_the_shallow_rule() -> None:
    for text, spelled in (
        ("visipruner:filter=8", "visipruner:filter=8,visual_attention=prefix"),
        ("visipruner:filter=8,merge_first=true", "visipruner:filter=8,visual_attention=self,merge_first=true"),
        ("visipruner:filter=0", "visipruner:filter=0"),
    ):
        policy = parse(text)
        assert str(policy) == text and str(policy.resolve(SPEC)) == spelled
        assert policy.resolve(SPEC).schedule(SPEC) == policy.schedule(SPEC)


def test_visipruner_of_a_paper_has_no_dense_filtering_layer() -> None:
    found = made("visipruner:filter=14.94,keep=10.3,exit=23.9")
    assert [stage.last for stage in found.stages] == [14.94, 23.9, 32]
    assert not found.executable


@settings(deadline=None, max_examples=60)
@given(
    filter_layer=st.integers(1, 28), keep=st.integers(1, 600), later=st.integers(2, 40), probe=st.booleans(),
    merge=st.booleans(),
)  # fmt: skip
def test_visipruner_always_tiles_the_model(filter_layer: int, keep: int, later: int, probe: bool, merge: bool) -> None:
    policy = VisiPruner(filter=filter_layer, keep=keep, exit=filter_layer + later, probe=probe, merge_first=merge)
    found = policy.schedule(SPEC)
    assert found.layers == 32 and found.executable
    assert parse(str(policy)).schedule(SPEC) == found
