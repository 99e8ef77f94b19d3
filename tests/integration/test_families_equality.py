"""Further families that a plan can be attached to: logits of the slow reference, and FLOPs that are executed.

Three unlike schedules each, kernels and kinds of batch taking turns.
"""

from __future__ import annotations

import pytest
import torch

from planner.cost import cost
from planner.errors import PlannerError
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.schedule import dense
from planner.spec import ModelSpec
from tests import tiny
from tests.forced import continuation, logits
from tests.integration.test_cost_counted import BATCH, workload_of
from tests.integration.test_runtime_equality import BATCHES, TOLERANCE, difference
from tests.reference import run
from tests.schedules import LAYERS, SCHEDULES
from tests.tiny.extra import EXTRA

#: Families with layers, attention or inputs that the runtime refuses by name.
REFUSED = (
    "blip-2", "ernie4_5_vl_moe", "gemma4", "janus", "kimi_k25", "lfm2_vl", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7",
    "minimax_m3_vl", "qwen3_5", "qwen3_5_moe", "step3p7",
)  # fmt: skip
ATTACHED = [name for name in EXTRA if name not in REFUSED and tiny.transformers_has(name)]
CHOSEN = ("visipruner", "fastv", "prefix-mixed")


@pytest.mark.parametrize("schedule", CHOSEN)
@pytest.mark.parametrize(("number", "name"), list(enumerate(ATTACHED)))
def test_logits_equal_the_reference(number: int, name: str, schedule: str) -> None:
    turn = number + CHOSEN.index(schedule)
    model = tiny.model(name, attn=("sdpa", "eager")[turn % 2], layers=LAYERS).requires_grad_(False)
    inputs = tiny.inputs(name, **list(BATCHES.values())[turn % len(BATCHES)])
    generated = continuation(len(inputs["input_ids"]))
    outcome = run(model, inputs, SCHEDULES[schedule], generated)
    handle = attach(model, SCHEDULES[schedule])
    try:
        found = logits(model, inputs, generated)
    finally:
        handle.detach()
    assert difference(found, [outcome.prefill, *outcome.steps]) < TOLERANCE


@pytest.mark.parametrize("schedule", CHOSEN)
@pytest.mark.parametrize("name", ATTACHED)
def test_counted_is_predicted(name: str, schedule: str) -> None:
    model = tiny.model(name, layers=LAYERS).requires_grad_(False)
    inputs = tiny.inputs(name, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict(), {"image_processor": EXTRA[name].processor or {}})
    expected = cost(spec, workload_of(name, spec, inputs), SCHEDULES[schedule], head="all")
    with attach(model, SCHEDULES[schedule]), torch.no_grad(), FlopCounter() as counter:
        model(**inputs)
    assert counter.total == expected.prefill_flops


@pytest.mark.parametrize("name", [name for name in REFUSED if tiny.transformers_has(name)])
def test_others_are_refused_by_name(name: str) -> None:
    with pytest.raises(PlannerError, match=rf"{name}|layer"):
        attach(tiny.model(name), dense(4))
