"""Windows shorter than the prompt: the cost of a schedule is still what a model executes with it attached."""

from __future__ import annotations

import pytest
import torch

from planner.cost import cost
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.runtime.selection.scores import BY_ATTENTION
from planner.schedule import Schedule, Select
from planner.spec import ModelSpec
from tests import tiny
from tests.integration.test_cost_counted import BATCH, cache_bytes, next_token, workload_of
from tests.schedules import LAYERS, SCHEDULES, static

FAMILIES = ("llava-mistral", "gemma3", "aya_vision")
#: Where text is dropped, which of it was inside the window depends on the sample.
NAMES = [name for name, schedule in SCHEDULES.items() if static(schedule) and not name.startswith("context")]


def unranked(schedule: Schedule) -> Schedule:
    """The schedule with selections by lot: a window that hides the image ranks nothing."""

    def drawn(select: Select) -> Select:
        if select.rank_by not in BY_ATTENTION:
            return select
        return select.model_copy(update={"rank_by": "random", "probe": False})

    stages = [stage.model_copy(update={"selects": tuple(map(drawn, stage.selects))}) for stage in schedule.stages]
    return Schedule(entry=schedule.entry, stages=tuple(stages))


@pytest.mark.parametrize("family", FAMILIES)
def test_planned_cost_equals_what_runs(family: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    # The text fills the window: where its edge falls among pruned tokens, how many are inside depends on the sample.
    inputs = tiny.inputs(family, batch=BATCH, text=13)
    spec = ModelSpec.from_config(model.config.to_dict())
    assert any(0 < layer.attention.window <= 13 for layer in spec.decoder.layers)
    workload = workload_of(family, spec, inputs)
    for name in NAMES[FAMILIES.index(family) :: len(FAMILIES)]:
        schedule = unranked(SCHEDULES[name])
        with attach(model, schedule), torch.no_grad():
            with FlopCounter() as prefill:
                output = model(**inputs, use_cache=True)
            held = cache_bytes(output.past_key_values)
            with FlopCounter() as decode:
                model(**next_token(family, inputs, output))
        expected = cost(spec, workload, schedule, head="all")
        figures = (expected.prefill_flops, expected.kv_cache_bytes, BATCH * expected.decode_flops_per_token)
        assert (prefill.total, held, decode.total) == figures, name
