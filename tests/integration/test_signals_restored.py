"""`observe` leaves a model as it found it, also when what it calls raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from planner.errors import RuntimeStateError
from planner.runtime import LayerView, attach, observe
from tests import tiny
from tests.schedules import LAYERS, SCHEDULES


def state(model: Any) -> list[Any]:
    """All that an observer could leave behind: hooks of every module, kernels by name, registered functions."""
    hooks = [(name, len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()]
    kernels = [(name, m.config._attn_implementation) for name, m in model.named_modules() if hasattr(m, "config")]
    return [hooks, kernels, set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping)]


class Stop(Exception):
    pass


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("at", [0, LAYERS - 1])
def test_nothing_is_left_after_a_callback_raises(at: int, attn: str) -> None:
    model, inputs = tiny.model("llava", attn=attn, layers=LAYERS, fresh=True), tiny.inputs("llava")
    seen: list[int] = []

    def stop(view: LayerView) -> None:
        seen.append(view.layer)
        if view.layer == at:
            raise Stop

    with torch.no_grad():
        expected = model(**inputs).logits  # transformers adds hooks of its own in the first forward
        before = state(model)
        with pytest.raises(Stop), observe(model, stop):
            model(**inputs)
        assert seen == list(range(at + 1)) and state(model) == before
        assert torch.equal(model(**inputs).logits, expected)
        assert len(seen) == at + 1, "the callback is not called any more"
        with observe(model, lambda view: seen.append(-1)):
            model(**inputs)
    assert seen.count(-1) == LAYERS


def test_nothing_is_left_after_the_block_itself_raises() -> None:
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    before = state(model)
    with pytest.raises(Stop), observe(model, lambda view: None):
        raise Stop
    assert state(model) == before


def test_nothing_is_set_up_where_observing_is_refused() -> None:
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    with attach(model, SCHEDULES["fastv"]):
        before = state(model)
        with pytest.raises(RuntimeStateError, match="a plan is attached"), observe(model, lambda view: None):
            pytest.fail("the block was entered")
        assert state(model) == before
    model.get_decoder().config._attn_implementation_internal = "flash_attention_2"
    before = state(model)
    with pytest.raises(RuntimeStateError, match="flash_attention_2"), observe(model, lambda view: None):
        pytest.fail("the block was entered")
    assert state(model) == before
