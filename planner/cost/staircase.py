"""A schedule laid over a workload: how many rows each stage computes and what the cache keeps of it.

Everything a cost formula reads is in a `Segment`. Its numbers are ints, floats in a paper's accounting (mean bounds
and budgets), or NumPy arrays with one entry per schedule in a sweep: the formulas do not know which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from planner.cost.selector import BY_LAST_ROW, Number
from planner.schedule import Count, Fraction, Keep, Schedule, Select, Stage, kept
from planner.workload import Workload


class Scoring(NamedTuple):
    """One selection and what its score reads.

    Attributes:
        select: the selection.
        visual, text: rows that the scoring layer's attention sees, visual ones and text after the image.
        layer: the scoring layer.
        ranked: rows that it chooses among; None: all `visual` ones.
        repeated: another selection has already computed the last row's weights in this layer.
        left: rows that it leaves of the ranked ones, where what it drops is merged into them.
    """

    select: Select
    visual: Number
    text: Number
    layer: Number
    ranked: Number = None
    repeated: bool = False
    left: Number = 0


class Segment(NamedTuple):
    """Layers ``[first, last)`` in which shapes do not change.

    Attributes:
        system, text, visual: rows present: before the image, after it, and visual.
        cached_visual: visual tokens the cache holds for decoding.
        prompt_text, prompt_visual: such tokens in the prompt before anything was dropped.
        between: text after the first image that stands before another one, of what `text` was in the prompt.
        marks: of the prompt's text, marks around and among pictures; context pruning is taken to leave them.
        scorings: selections at the end.
        gone: rows that these drop of those that run together: where visual ones are isolated, of text alone.
        generated: which tokens of the answer stay in the cache; None: all.
        alone: visual rows are isolated: each attends to itself, apart from the text, or with `prefix` to the text
            before it too.
        skip: visual rows pass by as they are.
        merge: the text's attention to the image falls on one visual token.
        reads: text after the image attends to visual tokens (other than through `merge`).
        streamed: the visual rows of these layers come from a cached image stream, or skip them: they cost what text
            reads of them.
        redistributes: attention weights are moved (VAR).
    """

    first: Number
    last: Number
    system: Number
    text: Number
    visual: Number
    cached_visual: Number
    prompt_text: int
    prompt_visual: int
    between: int = 0
    marks: int = 0
    scorings: tuple[Scoring, ...] = ()
    gone: Number = 0
    alone: bool = False
    prefix: bool = False
    skip: bool = False
    merge: bool = False
    reads: bool = True
    streamed: bool = False
    redistributes: bool = False
    generated: Count | Fraction | None = None

    @property
    def rows(self) -> Number:
        """Rows present in all."""
        return self.system + self.text + self.visual


def lay(schedule: Schedule, workload: Workload, rounds: bool = True, pieces: Sequence[int] = ()) -> tuple[Segment, ...]:
    """The segments of a schedule under a workload.

    Args:
        pieces: visual tokens of each piece that the entry has a budget for; empty: one of all.
        rounds: fractions of tokens are rounded to whole ones, as the runtime does; papers do not.
    """
    visual, text = _whole(workload.visual_tokens), _whole(workload.text_tokens)
    if schedule.entry is not None:
        visual = sum(survivor_count(schedule.entry.keep, piece, rounds) for piece in pieces or (visual,))
    system, between, marks = workload.system_tokens, workload.between_tokens, workload.mark_tokens
    prompt_text, prompt_visual = workload.text_tokens, workload.visual_tokens
    streamed = schedule.image_stream_layers() if workload.image_stream_cached else 0
    segments = []
    for stage in schedule.stages:
        scorings, left_visual, left_text = _select(stage, visual, text, rounds) if stage.selects else ((), visual, text)
        if stage.cache_visual == "all":
            cached = visual
        elif stage.cache_visual == "kept":
            cached = min(1, visual) if stage.text_to_visual == "merge" else left_visual
        else:
            cached = 0
        first, last = stage.first, stage.last
        if type(first) is float or type(last) is float:
            first, last = _whole(first), _whole(last)
        gone = text + visual - left_text - left_visual
        segment = Segment(
            first, last, system, text, visual, cached, prompt_text, prompt_visual, between, marks, scorings, gone
        )
        usual = (
            stage.visual_attention == "full"
            and stage.text_to_visual == "full"
            and stage.redistribute is None
            and stage.cache_generated is None
        )
        segments.append(segment if usual else segment._replace(**_rules(stage, streamed, gone, text - left_text)))
        visual, text = left_visual, left_text
    return tuple(segments)


def _rules(stage: Stage, streamed: Number, gone: Number, gone_text: Number) -> dict[str, Any]:
    """What is unlike the model in a stage, of layers the first `streamed` of which take visual rows from a cache."""
    return {
        "gone": gone_text if stage.isolated else gone,
        "alone": stage.isolated,
        "prefix": stage.visual_attention == "prefix",
        "skip": stage.visual_attention == "skip",
        "merge": stage.text_to_visual == "merge",
        "reads": stage.text_to_visual == "full",
        "streamed": stage.last <= streamed or stage.visual_attention == "skip",
        "redistributes": stage.redistribute is not None,
        "generated": stage.cache_generated,
    }


def _select(stage: Stage, visual: Number, text: Number, rounds: bool) -> tuple[tuple[Scoring, ...], Number, Number]:
    """What the selections of a stage read, and the visual and text rows that they leave."""
    scorings, left_visual, left_text, weighed = [], visual, text, False
    # Isolated visual rows that are not read have no keys that a score could meet.
    seen = 0 * visual if stage.text_to_visual == "none" and stage.isolated else visual
    for select in stage.selects:
        of_visual = select.of == "visual"
        ranked = left_visual if of_visual else max(left_text - select.protect, 0)
        keep = select.keep
        # Whole counts without a call: this is asked of every selection.
        if type(keep) is Count and type(keep.count) is int:
            left = keep.count if keep.count < ranked else ranked
        else:
            left = survivor_count(keep, ranked, rounds)
        if select.probe:
            # It runs in the next layer, on what the selections before it have left.
            scorings.append(Scoring(select, left_visual, left_text, stage.last, ranked, False, left))
        else:
            by_last_row = select.rank_by in BY_LAST_ROW
            scorings.append(Scoring(select, seen, text, stage.last - 1, ranked, by_last_row and weighed, left))
            weighed = weighed or (by_last_row and ranked > 0)
        if of_visual:
            left_visual = left
        else:
            left_text = left_text - ranked + left
    return tuple(scorings), left_visual, left_text


def survivor_count(keep: Keep, present: float, rounds: bool = True) -> float:
    """`planner.schedule.kept`, as an int where it is whole; without rounding, a fraction of a token stays a
    fraction."""
    if not rounds and isinstance(keep, Fraction):
        return _whole(keep.fraction * present)
    return _whole(kept(keep, present))


def _whole(value: float) -> float:
    """Whole floats as ints, so that exact counts stay ints of any size."""
    if type(value) is int:
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else value
