"""Context pruning as a schedule for models of any depth."""

from __future__ import annotations

from planner.policies.base import relative_layers
from planner.policies.context import Context
from planner.schedule import Schedule, Stage
from planner.spec import ModelSpec

#: The paper counts layers of 32-layer models: 10 is its choice, 7 and 13 are its ablation.
LAYERS, OTHER_LAYERS = 10, (7, 13)
#: As many layers as `LAYERS`, but elsewhere (figure 12).
DEPTHS = {"middle layers": 0.5, "deep layers": 1.0}


def pruning(
    spec: ModelSpec,
    rate: float,
    protect: int,
    of_layers: int = LAYERS,
    rank_by: str = "attention_received",
    depth: float = 0.0,
) -> Schedule:
    """The context policy's schedule over the first `of_layers` of 32 layers, scaled to the model's depth.

    Args:
        rank_by: ``attention_received``, or ``random`` for the comparison.
        depth: where these layers are: 0 the first ones, 1 the last ones that still have one after them.
    """
    (layers,) = relative_layers((of_layers,), spec.layers)
    schedule = Context(layers=layers, rate=rate, protect=protect).schedule(spec)
    start = round(depth * (spec.layers - layers - 1))
    if start > 0:
        schedule = _later(schedule, start, spec.layers)
    if rank_by == "attention_received":
        return schedule
    return Schedule(
        stages=tuple(
            stage.model_copy(
                update={"selects": tuple(select.model_copy(update={"rank_by": rank_by}) for select in stage.selects)}
            )
            for stage in schedule.stages
        )
    )


def _later(schedule: Schedule, start: int, layers: int) -> Schedule:
    """The same selections, so many layers later."""
    selecting = [
        stage.model_copy(update={"first": stage.first + start, "last": stage.last + start})
        for stage in schedule.stages
        if stage.selects
    ]
    return Schedule(stages=(Stage(first=0, last=start), *selecting, Stage(first=selecting[-1].last, last=layers)))
