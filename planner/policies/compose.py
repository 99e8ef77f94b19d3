"""Several policies at once: ``prellm:keep=0.5+visipruner:filter=3,keep=20,exit=7``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from planner.errors import InputError
from planner.policies.base import Policy
from planner.policies.on_model import OnModel
from planner.schedule import Schedule, Stage

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload

T = TypeVar("T")
#: Weakest to strongest; the strongest rule of two wins.
_ATTENTION = ("full", "prefix", "self", "skip")
_READS = ("full", "merge", "none")
_CACHE = ("all", "kept", "none")


@dataclass(frozen=True)
class Composition(OnModel):
    """Policies applied together, from the first to the last. Behaves as a `Policy`."""

    parts: tuple[Policy, ...]
    name: str = "composition"
    summary: str = "several policies together"

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        """The schedules of all parts, laid over each other.

        Raises:
            InputError: two parts want different things of the same layer.
        """
        result = self.parts[0].schedule(spec, workload, profile)
        for part in self.parts[1:]:
            result = combine(result, part.schedule(spec, workload, profile))
        return result

    def resolve(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Composition:
        """Every part resolved, see `Policy.resolve`."""
        return Composition(tuple(part.resolve(spec, workload, profile) for part in self.parts))

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts)


#: What is costed, planned and attached.
AnyPolicy = Policy | Composition


def combine(below: Schedule, above: Schedule) -> Schedule:
    """One schedule that does what both do: stages are cut at both's bounds, the stricter rule holds, selections
    follow each other.

    Raises:
        InputError: both select before the language model, or both redistribute attention in a layer, or drop generated
            tokens there.
    """
    ahead = [part for schedule in (below, above) for part in (schedule.entry, schedule.tower) if part is not None]
    if len(ahead) > 1:
        raise InputError(
            "two policies select before the language model", "Combine at most one of 'prellm', 'tome' and 'random:k=0'"
        )
    bounds = sorted({stage.last for schedule in (below, above) for stage in schedule.stages})
    stages, first = [], 0.0
    for last in bounds:
        one, other = (next(s for s in schedule.stages if s.first <= first < s.last) for schedule in (below, above))
        stages.append(_both(one, other, int(first) if first.is_integer() else first, last))
        first = float(last)
    positions = below.positions if below.entry is not None else above.positions
    entry, tower = below.entry or above.entry, below.tower or above.tower
    return Schedule(entry=entry, stages=tuple(stages), positions=positions, tower=tower)


def _both(one: Stage, other: Stage, first: float, last: float) -> Stage:
    if one.redistribute is not None and other.redistribute is not None:
        raise InputError(
            f"two policies redistribute attention in layers [{first}, {last})", "Combine one 'var' with the others"
        )
    if one.cache_generated is not None and other.cache_generated is not None:
        raise InputError(
            f"two policies drop generated tokens in layers [{first}, {last})", "Combine one 'generated' with the others"
        )
    reads = _stricter(_READS, one.text_to_visual, other.text_to_visual)
    try:
        return _strictest(one, other, first, last, reads)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"the policies do not go together: {message}", "Change one policy's layers") from error


def _strictest(one: Stage, other: Stage, first: float, last: float, reads: str) -> Stage:
    return Stage(
        first=first,
        last=last,
        visual_attention=_stricter(_ATTENTION, one.visual_attention, other.visual_attention),  # type: ignore[arg-type]
        text_to_visual=reads,  # type: ignore[arg-type]
        cache_visual=_stricter(_CACHE, one.cache_visual, other.cache_visual),  # type: ignore[arg-type]
        selects=(*(one.selects if one.last == last else ()), *(other.selects if other.last == last else ())),
        # Where the text does not see the image there is nothing to redistribute.
        redistribute=(one.redistribute or other.redistribute) if reads == "full" else None,
        cache_generated=one.cache_generated or other.cache_generated,
    )


def _stricter(order: tuple[str, ...], *rules: str) -> str:
    return max(rules, key=order.index)
