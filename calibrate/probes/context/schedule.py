"""Context pruning as a schedule for models of any depth."""

from __future__ import annotations

from planner.policies.base import relative_layers
from planner.policies.context import Context
from planner.schedule import Schedule
from planner.spec import ModelSpec

#: The paper counts layers of 32-layer models: 10 is its choice, 7 and 13 are its ablation.
LAYERS, OTHER_LAYERS = 10, (7, 13)


def pruning(
    spec: ModelSpec, rate: float, protect: int, of_layers: int = LAYERS, rank_by: str = "attention_received"
) -> Schedule:
    """The context policy's schedule over the first `of_layers` of 32 layers, scaled to the model's depth.

    Args:
        rank_by: ``attention_received``, or ``random`` for the comparison.
    """
    (layers,) = relative_layers((of_layers,), spec.layers)
    schedule = Context(layers=layers, rate=rate, protect=protect).schedule(spec)
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
