"""Packed positions outside `generate`: without a mask, a cache or positions of steps; and what is refused."""

from __future__ import annotations

import pytest
import torch

from planner.errors import RuntimeStateError, ScheduleError
from planner.runtime import attach
from planner.runtime.fixed import fix
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation
from tests.integration.test_runtime_equality import TOLERANCE
from tests.reference import run
from tests.schedules import LAYERS, PACKED


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_forward_packs_what_generate_packs(family: str, masked: bool, use_cache: bool) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family)
    generated = continuation(1, steps=3)
    expected = run(model, inputs, PACKED["packed"], generated)
    given = inputs if masked else {name: value for name, value in inputs.items() if name != "attention_mask"}
    with attach(model, PACKED["packed"]), torch.no_grad(), float64_throughout():
        output = model(**given, use_cache=use_cache)
        found = [output.logits[:, -1]]
        for token in generated.split(1, dim=1) if use_cache else ():
            output = model(input_ids=token, past_key_values=output.past_key_values)
            found.append(output.logits[:, -1])
    wanted = [expected.prefill, *expected.steps][: len(found)]
    assert max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_several_position_axes_are_refused(family: str) -> None:
    with pytest.raises(ScheduleError, match="several axes"):
        attach(tiny.model(family, layers=LAYERS), PACKED["packed"])


def test_a_fixed_cache_is_refused() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    with attach(model, PACKED["packed"]), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(RuntimeStateError, match="packed positions"):
            fix(cache, 4)
