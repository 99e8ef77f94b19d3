"""Whether an engine can carry a schedule: as it was measured, nearly so, or not, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.engines.facts import Engine, Level, Route, engine, engine_names
from planner.errors import PlannerError
from planner.schedule import Count, Fraction, Schedule, Select, Stage, Threshold, kept
from planner.spec import ModelSpec

if TYPE_CHECKING:
    from planner.plan import Plan

_STAGE_RULES = ("visual_attention", "text_to_visual", "cache_visual")


@dataclass(frozen=True)
class Carried:
    """What becomes of a schedule on an engine.

    Attributes:
        route: how it is carried; None where it is not.
        why: of ``no`` what stands against it, of ``approximate`` what is not as it was measured; one clause each.
    """

    engine: Engine
    level: Level
    why: tuple[str, ...] = ()
    route: Route | None = None


def portability(plan: Plan) -> tuple[Carried, ...]:
    """What every engine can carry of a plan. It is derived, not stored: engines change, plans do not. Empty where the
    model's family is not known here."""
    try:
        spec = ModelSpec.from_config(plan.model.config)
    except PlannerError:
        return ()
    return tuple(carried(engine(name), plan.decision.schedule, spec, visual_tokens(plan)) for name in engine_names())


def visual_tokens(plan: Plan) -> int | None:
    """Of the prompts that the plan was made for, on average; None where it does not say."""
    return plan.prediction[0].workload.visual_tokens if plan.prediction else None


def carried(engine: Engine, schedule: Schedule, spec: ModelSpec, visual: int | None = None) -> Carried:
    """What an engine can carry of a schedule on a model.

    Args:
        visual: visual tokens of a prompt, for engines that take a share where the schedule has a number, or the other
            way round.
    """
    entry = schedule.entry
    if schedule.cost_only:
        return Carried(engine, "no", tuple(f"it {what}, which can be costed alone" for what in schedule.cost_only))
    if not engine.rigid or schedule.empty:
        return Carried(engine, "exact", (), engine.routes[0])
    if entry is None or not schedule.before_decoder:
        return Carried(engine, "no", (f"it works inside the decoder, where {engine.rigid}",))
    tried = [(route, tuple(_against(route, schedule, entry, spec, visual))) for route in engine.routes]
    route, against = min(tried, key=lambda one: len(one[1]))  # the first that takes it, or most of it
    if against:
        return Carried(engine, "no", against)
    differs = (*route.differs, *_differs(route, entry, schedule, visual))
    return Carried(engine, "approximate" if differs else "exact", differs, route)


def lost_stages(schedule: Schedule) -> list[str]:
    """Everything that acts behind the decoder's entry, in words, one stage each."""
    return [text for text in map(_stage_text, schedule.stages) if text]


def _stage_text(stage: Stage) -> str:
    rules = [f"{name}={getattr(stage, name)}" for name in _STAGE_RULES if getattr(stage, name) not in ("full", "all")]
    rules += (select.in_words for select in stage.selects)
    if stage.redistribute is not None:
        rules.append("redistribute attention")
    last = stage.last - 1
    layers = f"layer {last:g}" if stage.first == last else f"layers {stage.first:g} to {last:g}"
    return f"{layers} {' and '.join(rules)}" if rules else ""


def _against(route: Route, schedule: Schedule, entry: Select, spec: ModelSpec, visual: int | None) -> Iterator[str]:
    """Why a route cannot be taken."""
    if route.rank_by and entry.rank_by not in route.rank_by:
        yield f"{route.name} does not choose tokens by '{entry.rank_by}'"
    elif route.merge and entry.merge not in route.merge:
        yield f"{route.name} knows no merge={entry.merge}"
    if route.per and entry.per == "tile" and "tile" not in route.per:
        yield f"{route.name} has no budget for each tile"
    if route.only_positions and route.positions != schedule.positions:
        yield f"positions of '{spec.family}' cannot be {schedule.positions} there"
    if route.families and spec.family not in route.families:
        yield f"{route.name} does not know '{spec.family}' (but {', '.join(route.families)})"
    if route.image_rules and (spec.images is None or spec.images.kind not in route.image_rules):
        yield f"pictures of '{spec.family}' have one size or are cut into tiles"
    if isinstance(entry.keep, Threshold):
        yield "how many tokens stay must be known beforehand"
    elif route.step is not None:
        yield from _no_share(route.step, entry, visual)
    elif route.limit and not visual:
        yield "the plan does not say how many visual tokens a picture has"


def _no_share(step: float, entry: Select, visual: int | None) -> Iterator[str]:
    if isinstance(entry.keep, Count) and not visual:
        yield "it takes a share of the tokens, the plan keeps a number, and does not say of how many"
    elif not 0 < stepped(dropped(entry, visual), step) < 1:
        yield f"the share that is dropped must be at least {step:g} and below 1"


def _differs(route: Route, entry: Select, schedule: Schedule, visual: int | None) -> Iterator[str]:
    """What is not as the plan has it."""
    if route.positions is not None and route.positions != schedule.positions:
        yield f"positions are {route.positions}; the plan was made with {schedule.positions} ones"
    if route.per and entry.per not in route.per:
        yield route.several
    if route.step is not None:
        exact = dropped(entry, visual)
        if isinstance(entry.keep, Count):
            yield f"{entry.keep.count:g} tokens become a share: {1 - exact:.4g} of {visual}, and as much of any picture"
        if abs(stepped(exact, route.step) - exact) > 1e-9:
            yield f"the share that is dropped, {exact:.4g}, becomes {stepped(exact, route.step):.4g}"
    if route.limit:
        yield "it is a limit, of as many tokens as the mean prompt keeps: smaller pictures keep all theirs"


def dropped(entry: Select, visual: int | None) -> float:
    """The share of the visual tokens that an entry drops; of a number, its share of `visual`."""
    if isinstance(entry.keep, Fraction):
        return round(1 - entry.keep.fraction, 6)
    return 1 - kept(entry.keep, visual or 1) / (visual or 1)


def stepped(share: float, step: float) -> float:
    """The nearest multiple of a step."""
    return round(round(share / step) * step, 6)
