"""fvcore with our handles gives our number, half as large: it counts a multiply-add as one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from planner.cost import cost
from planner.runtime import attach
from planner.runtime.fvcore_handles import analysis
from planner.schedule import dense
from planner.spec import ModelSpec
from tests import tiny
from tests.integration.test_cost_counted import BATCH, workload_of
from tests.schedules import LAYERS, SCHEDULES

#: Families in which tracing finds every layer used.
FAMILIES = ("llama", "paligemma", "paligemma2", "internvl", "smolvlm")


@pytest.fixture(autouse=True)
def _quiet_tracing() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dense(family: str, attention: str) -> None:
    model = tiny.model(family, attn=attention)
    inputs = tiny.inputs(family, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of(family, spec, inputs), dense(spec.layers), head="all")
    with torch.no_grad():
        assert 2 * analysis(model, **inputs).total() == expected.prefill_flops


@pytest.mark.parametrize("name", ["fastv", "visipruner", "prellm", "context"])
def test_with_a_plan_attached(name: str) -> None:
    model = tiny.model("internvl", layers=LAYERS)
    inputs = tiny.inputs("internvl", batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of("internvl", spec, inputs), SCHEDULES[name], head="all")
    with attach(model, SCHEDULES[name]), torch.no_grad():
        assert 2 * analysis(model, **inputs).total() == expected.prefill_flops


def test_what_tracing_leaves_out() -> None:
    """LLaVA's last vision layer runs, and its result is never used."""
    model = tiny.model("llava")
    inputs = tiny.inputs("llava", batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of("llava", spec, inputs), dense(spec.layers), head="all")
    assert spec.vision is not None
    block, tokens = spec.vision.blocks[0], 16 + 1
    layer = 2 * BATCH * (tokens * block.macs + tokens * tokens * block.pair_macs)
    with torch.no_grad():
        assert 2 * analysis(model, **inputs).total() == expected.prefill_flops - layer
