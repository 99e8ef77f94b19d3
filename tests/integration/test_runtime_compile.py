"""A plan takes effect however people compile a model: before or after it is attached, as a whole or in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from planner.runtime import attach
from tests import tiny
from tests.integration.test_runtime_invariants import assert_unchanged, snapshot
from tests.schedules import LAYERS, SCHEDULES

GENERATE = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": list(range(118, 128))}


def whole(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def its_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def its_text_tower(model: Any) -> Any:
    model.model.language_model.compile(backend="eager")
    return model


def its_layers(model: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


@pytest.mark.filterwarnings("ignore")  # what compilers say on the way
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("compiled", [whole, in_place, its_forward, its_text_tower, its_layers])
def test_a_compiled_model_executes_the_plan(compiled: Callable[[Any], Any], when: str) -> None:
    if compiled is whole and when == "before":
        pytest.skip("torch.compile(model) makes an object of its own and leaves the model")
    torch._dynamo.reset()
    model, inputs = tiny.model("llava", layers=LAYERS, fresh=True), tiny.inputs("llava")
    with torch.no_grad():
        dense = model(**inputs).logits[:, -1]
        with attach(model, SCHEDULES["visipruner"]) as handle:
            expected, report = model(**inputs).logits[:, -1], handle.report
            answer = model.generate(**inputs, **GENERATE)
        assert not torch.allclose(expected, dense, atol=1e-3)
        if when == "before":
            compiled(model)
        before = snapshot(model)
        with attach(model, SCHEDULES["visipruner"]) as handle:
            running = compiled(model) if when == "after" else model
            assert torch.allclose(running(**inputs).logits[:, -1], expected, atol=1e-6)
            assert handle.report == report
            assert torch.equal(running.generate(**inputs, **GENERATE), answer)
        assert torch.allclose(running(**inputs).logits[:, -1], dense, atol=1e-6)
        if when == "before":
            assert_unchanged(model, before)
