"""Random schedules for property tests: every field, every combination that the schedule's own rules allow."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from planner.schedule import ATTENTION_SCORES, Count, Fraction, Redistribute, Schedule, Select, Stage, Threshold

counts = st.builds(Count, count=st.sampled_from([0, 1, 2, 3, 5, 8, 100]))
fractions = st.builds(Fraction, fraction=st.sampled_from([0.01, 0.2, 0.35, 0.5, 0.77, 1.0]))
bars = st.sampled_from([0.0, 0.02, 0.1, 0.3, 9.0])


def thresholds(relative: st.SearchStrategy[bool]) -> st.SearchStrategy[Threshold]:
    return st.builds(
        Threshold,
        threshold=bars,
        relative=relative,
        at_least=st.sampled_from([1, 2]),
        at_most=st.sampled_from([3, 6, 12]),
        expected=st.none() | st.sampled_from([1.5, 4.0]),
    )


absolute = counts | fractions | thresholds(st.just(False))
nothing = st.just(Select(rank_by="none", keep=Count(count=0)))
seeded = st.builds(Select, rank_by=st.just("random"), keep=counts | fractions, seed=st.integers(0, 5))
by_influence = st.builds(
    Select,
    rank_by=st.sampled_from(["influence_l2", "influence_cos"]),
    keep=counts | fractions | thresholds(st.booleans()),
    probe=st.booleans(),
)
by_weight = st.builds(Select, rank_by=st.just("last_attention"), keep=absolute, probe=st.booleans())
by_text = st.builds(Select, rank_by=st.sampled_from(["text_raters", "text_attention"]), keep=absolute)
by_both = st.builds(Select, rank_by=st.sampled_from(["cross_self_attention", "visual_attention"]), keep=absolute)
# The last row predicts the answer, so at least that one is protected.
received = st.builds(
    Select,
    rank_by=st.just("attention_received"),
    keep=absolute,
    of=st.just("context"),
    protect=st.sampled_from([1, 2, 3, 50]),
)
pieces = st.sampled_from(["prompt", "prompt", "picture", "tile"])
# A determinantal order of more tokens than features has volumes of zero, whose order is that of rounding errors.
entries = st.builds(
    Select,
    rank_by=st.sampled_from(["random", "encoder_norm", "pivot_distance", "max_min_distance"]),
    keep=counts | fractions,
    merge=st.sampled_from(["none", "mean", "nearest"]),
    per=pieces,
) | st.builds(
    Select, rank_by=st.just("grid"), keep=counts | fractions, merge=st.sampled_from(["none", "cell"]), per=pieces
)


@st.composite
def stages(draw: st.DrawFn, first: int, last: int, final: bool, edit: Redistribute) -> Stage:
    reads = draw(st.sampled_from(["full", "full", "merge", "none"]))
    caches = {"full": ["all", "kept", "none"], "merge": ["kept", "none"], "none": ["none"]}[reads]
    attention = "self" if reads == "merge" else draw(st.sampled_from(["full", "prefix", "self", "skip"]))
    by_attention = by_influence | by_weight | by_text | (by_both if attention == "full" else nothing)
    possible = (nothing | seeded | received | by_attention).filter(
        # There is no layer after the last to probe, and no attention to the image where text does not see it.
        lambda select: (
            not (select.probe and final) and (select.probe or reads != "none" or select.rank_by not in ATTENTION_SCORES)
        )
    )
    return Stage(
        first=first,
        last=last,
        visual_attention=attention,  # type: ignore[arg-type]
        text_to_visual=reads,  # type: ignore[arg-type]
        cache_visual=draw(st.sampled_from(caches)),  # type: ignore[arg-type]
        selects=tuple(draw(st.lists(possible, max_size=2))),
        redistribute=draw(st.none() | st.just(edit)) if reads == "full" else None,
    )


@st.composite
def schedules(draw: st.DrawFn, layers: int, edit: Redistribute) -> Schedule:
    """Schedules over so many layers; `edit` is the redistribution that stages may carry."""
    cuts = sorted(draw(st.sets(st.integers(1, layers), max_size=4)) | {0, layers})
    bounds = itertools.pairwise(cuts)
    made = tuple(draw(stages(first, last, last == layers, edit)) for first, last in bounds)
    return Schedule(stages=made, entry=draw(st.none() | entries))
