"""The cost of a schedule is what a model executes with that schedule attached: integers, in every family the runtime
knows."""

from __future__ import annotations

import os

import pytest
import torch

from planner.cost import cost
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.spec import ModelSpec
from tests import tiny
from tests.integration.test_cost_counted import BATCH, cache_bytes, next_token, workload_of
from tests.schedules import LAYERS, SCHEDULES

REFUSED = ("mllama", "llama4")
FAMILIES = [family for family in tiny.VISION if family not in REFUSED]
#: Families that meet every schedule; the others meet every third, each another third, unless FULL_MATRIX is set.
THOROUGH = ("llava", "qwen2_5_vl") if not os.environ.get("FULL_MATRIX") else tuple(tiny.VISION)
STATIC = [name for name, schedule in SCHEDULES.items() if schedule.static]


@pytest.mark.parametrize("family", FAMILIES)
def test_planned_cost_equals_what_runs(family: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    # Where a window's edge falls among pruned tokens, how many of them are inside depends on the sample: here the
    # text fills it.
    inputs = tiny.inputs(family, batch=BATCH, text=13)
    spec = ModelSpec.from_config(model.config.to_dict())
    workload = workload_of(family, spec, inputs)
    windowed = any(layer.attention.window for layer in spec.decoder.layers)
    names = STATIC if family in THOROUGH else STATIC[FAMILIES.index(family) % 3 :: 3]
    for name in names:
        if windowed and name.startswith("context"):
            continue
        with attach(model, SCHEDULES[name]), torch.no_grad():
            with FlopCounter() as prefill:
                output = model(**inputs, use_cache=True)
            held = cache_bytes(output.past_key_values)
            with FlopCounter() as decode:
                model(**next_token(family, inputs, output))
        expected = cost(spec, workload, SCHEDULES[name], head="all")
        found = (prefill.total, held, decode.total)
        assert found == (
            expected.prefill_flops,
            expected.kv_cache_bytes,
            BATCH * expected.decode_flops_per_token,
        ), name
