"""The schedule: what must hold for every one of them, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.errors import ScheduleError
from planner.schedule import Count, Fraction, Keep, Redistribute, Schedule, Select, Stage, Threshold, dense, kept
from tests.strategies import schedules

keeps: st.SearchStrategy[Keep] = (
    st.builds(Count, count=st.integers(0, 3000))
    | st.builds(Fraction, fraction=st.floats(0.001, 1.0))
    | st.builds(
        Threshold,
        threshold=st.floats(-10, 10),
        at_least=st.integers(1, 5),
        at_most=st.integers(5, 50),
        expected=st.none() | st.floats(0, 60),
    )
)
any_schedule = st.integers(1, 12).flatmap(lambda layers: schedules(layers, Redistribute(sink_dims=(1415, 2533))))


@given(any_schedule)
def test_json_round_trip_is_identity(schedule: Schedule) -> None:
    assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule


@given(any_schedule)
def test_stages_tile_the_layers(schedule: Schedule) -> None:
    owners = [schedule.stage_of(layer) for layer in range(schedule.layers)]
    assert [len(list(run)) for _, run in itertools.groupby(owners, key=lambda stage: stage.first)] == [
        int(stage.last - stage.first) for stage in schedule.stages
    ]
    for layer in (-1, schedule.layers):
        with pytest.raises(ScheduleError, match=f"layer {layer} is outside"):
            schedule.stage_of(layer)


@given(any_schedule)
def test_selects_come_in_order(schedule: Schedule) -> None:
    inner = [select for stage in schedule.stages for select in stage.selects]
    assert list(schedule.selects) == ([schedule.entry] if schedule.entry else []) + inner
    assert schedule.executable


@given(any_schedule)
def test_only_the_dense_schedule_is_empty(schedule: Schedule) -> None:
    plain = [Stage(first=stage.first, last=stage.last) for stage in schedule.stages]
    assert schedule.empty == (schedule.entry is None and list(schedule.stages) == plain)
    assert dense(schedule.layers).empty


@given(keeps, st.integers(0, 3000), st.integers(0, 3000))
def test_kept_is_monotone_and_bounded(keep: Keep, a: int, b: int) -> None:
    fewer, more = sorted((a, b))
    assert 0 <= kept(keep, fewer) <= kept(keep, more) <= more
    assert kept(keep, fewer) <= fewer


@given(st.integers(1, 3000), st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_a_larger_fraction_keeps_no_less(present: int, a: float, b: float) -> None:
    small, large = sorted((a, b))
    assert kept(Fraction(fraction=small), present) <= kept(Fraction(fraction=large), present)


@pytest.mark.parametrize(
    ("keep", "present", "expected"),
    [
        (Count(count=10), 576, 10),
        (Count(count=10), 4, 4),
        (Count(count=0), 576, 0),
        (Fraction(fraction=0.25), 576, 144),
        (Fraction(fraction=0.5), 5, 3),  # halves go up
        (Fraction(fraction=0.3), 5, 2),
        (Fraction(fraction=0.29), 5, 1),
        (Fraction(fraction=0.01), 5, 1),  # at least one
        (Fraction(fraction=0.5), 0, 0),
        (Threshold(threshold=0.2, at_most=30), 576, 30),
        (Threshold(threshold=0.2, at_most=30, expected=9.4), 576, 9.4),
        (Threshold(threshold=0.2, at_least=4, at_most=30, expected=1.5), 576, 4),
        (Threshold(threshold=0.2, at_least=4, at_most=30), 3, 3),
    ],
)
def test_kept_by_hand(keep: Keep, present: int, expected: float) -> None:
    assert kept(keep, present) == expected


_STAGE: dict[str, Any] = {"first": 0, "last": 4}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"last": 0}, "greater than 0"),
        ({"first": 4}, "at least one layer"),
        ({"text_to_visual": "merge"}, "needs visual_attention 'self'"),
        (
            {"text_to_visual": "merge", "visual_attention": "prefix", "cache_visual": "none"},
            "needs visual_attention 'self'",
        ),
        (
            {"visual_attention": "prefix", "selects": (Select(rank_by="cross_self_attention", keep=Count(count=3)),)},
            "which 'prefix' removes",
        ),
        ({"visual_attention": "text"}, "Input should be"),
        ({"text_to_visual": "none"}, "cache_visual must be 'none'"),
        ({"text_to_visual": "merge", "visual_attention": "self"}, "only the merge token means anything"),
        (
            {
                "text_to_visual": "none",
                "cache_visual": "none",
                "selects": (Select(rank_by="last_attention", keep=Count(count=3)),),
            },
            "nothing to rank by",
        ),
        ({"selects": (Select(rank_by="encoder_norm", keep=Count(count=3)),)}, "belongs to the schedule's entry"),
        (
            {"text_to_visual": "none", "cache_visual": "none", "redistribute": Redistribute(sink_dims=(1,))},
            "redistribute needs",
        ),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_contradicting_stages_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Stage(**{**_STAGE, **fields})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rank_by": "none", "keep": Count(count=3)}, "can only drop everything"),
        ({"rank_by": "random", "keep": Threshold(threshold=0.1, at_most=5)}, "needs a score"),
        ({"rank_by": "attention_received", "keep": Count(count=3)}, "does not rank visual"),
        ({"rank_by": "last_attention", "keep": Count(count=3), "of": "context", "protect": 1}, "does not rank context"),
        ({"rank_by": "attention_received", "keep": Count(count=3), "of": "context"}, "protect at least"),
        ({"rank_by": "text_raters", "keep": Threshold(threshold=1, relative=True, at_most=5)}, "share of an influence"),
        ({"rank_by": "text_raters", "keep": Count(count=3), "probe": True}, "probe computes one query row"),
        ({"rank_by": "random", "keep": {"count": -1}}, "greater than or equal to 0"),
        ({"rank_by": "best", "keep": Count(count=1)}, "Input should be"),
    ],
)
def test_contradicting_selections_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Select(**fields)


def test_gaps_and_overlaps_are_refused() -> None:
    for second in (3, 5):
        with pytest.raises(ValidationError, match=f"starts at layer {second}, expected 4"):
            Schedule(stages=(Stage(first=0, last=4), Stage(first=second, last=8)))
    with pytest.raises(ValidationError, match="starts at layer 1, expected 0"):
        Schedule(stages=(Stage(first=1, last=4),))


def test_entry_and_probe_in_the_wrong_place_are_refused() -> None:
    with pytest.raises(ValidationError, match="nothing ranks by 'last_attention' before the first layer"):
        Schedule(stages=(Stage(**_STAGE),), entry=Select(rank_by="last_attention", keep=Count(count=3)))
    probing = Select(rank_by="last_attention", keep=Count(count=3), probe=True)
    with pytest.raises(ValidationError, match="no layer after it"):
        Schedule(stages=(Stage(**_STAGE, selects=(probing,)),))


def test_fractional_bounds_and_counts_are_for_accounting_only() -> None:
    stage = Stage(first=0, last=14.94, selects=(Select(rank_by="influence_l2", keep=Count(count=10.3)),))
    assert not Schedule(stages=(stage, Stage(first=14.94, last=32))).executable
    assert not Schedule(
        stages=(
            Stage(first=0, last=2, selects=(Select(rank_by="random", keep=Count(count=10.3)),)),
            Stage(first=2, last=4),
        )
    ).executable
    assert dense(32).executable


_BLIND = {"text_to_visual": "none", "cache_visual": "none"}
_CONTEXT = Select(rank_by="attention_received", keep=Count(count=3), of="context", protect=1)
_FEW = Select(rank_by="random", keep=Count(count=3))


@pytest.mark.parametrize(
    ("stages", "layers", "reads_prefix"),
    [
        ([{"visual_attention": "prefix"}], 4, True),
        ([{"visual_attention": "prefix", **_BLIND}, {}], 4, True),
        ([{"visual_attention": "self"}, {"visual_attention": "prefix", **_BLIND}, {}], 8, True),
        ([{"visual_attention": "self"}, {"visual_attention": "self", **_BLIND}], 8, False),
        # What a choice among the tokens leaves depends on the question.
        ([{"visual_attention": "self", "selects": (_FEW,)}, {"visual_attention": "prefix"}], 4, False),
        ([{}, {"visual_attention": "prefix"}], 0, False),
        # Which text between images is dropped depends on the question, and rows that see none of it do not mind.
        ([{"visual_attention": "prefix", "selects": (_CONTEXT,)}, {"visual_attention": "prefix"}], 4, True),
        ([{"visual_attention": "prefix", "selects": (_CONTEXT,)}, {"visual_attention": "self"}], 8, True),
        ([{"visual_attention": "prefix", "redistribute": Redistribute(sink_dims=(1,))}], 0, False),
    ],
)
def test_layers_of_the_image_stream(stages: list[dict[str, Any]], layers: int, reads_prefix: bool) -> None:
    schedule = Schedule(stages=tuple(Stage(first=4 * n, last=4 * n + 4, **stage) for n, stage in enumerate(stages)))
    assert schedule.image_stream_layers() == layers
    assert schedule.image_stream_reads_prefix() == reads_prefix
    # All of the encoder's later features must come inside the stream.
    assert schedule.image_stream_layers(deepstack=layers + 1) == 0
    assert not schedule.image_stream_reads_prefix(deepstack=layers + 1)
