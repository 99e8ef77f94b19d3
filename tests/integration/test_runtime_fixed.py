"""Decoding over fixed buffers: one graph for all steps, and the logits of the growing cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from planner.errors import InputError, RuntimeStateError
from planner.runtime import attach, fix
from planner.schedule import Schedule, Stage
from tests import tiny
from tests.schedules import LAYERS, SCHEDULES, select

STEPS = 5


def positions(model: Any, inputs: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    """Families with three position axes leave decode positions to `generate`; here they are given."""
    if not hasattr(model.model, "rope_deltas"):
        return {}
    place = inputs["input_ids"].shape[1] + step + model.model.rope_deltas
    return {"position_ids": place.view(1, -1, 1).expand(3, -1, 1)}


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "internvl"])
def test_a_compiled_step_is_one_graph_and_exact(family: str) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=2, left_pad=3)
    tokens = torch.randint(5, 100, (STEPS, 2, 1), generator=torch.Generator().manual_seed(2))
    longest = torch.nn.functional.pad(inputs["attention_mask"], (0, STEPS + 1), value=1)
    length = inputs["input_ids"].shape[1]
    with attach(model, SCHEDULES["visipruner"]), torch.inference_mode():
        growing = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        expected = [
            model(
                input_ids=token,
                past_key_values=growing,
                attention_mask=longest[:, : length + step + 1],
                **positions(model, inputs, step),
            ).logits
            for step, token in enumerate(tokens)
        ]
        fixed = fix(model(**inputs, use_cache=True, logits_to_keep=1).past_key_values, STEPS + 1)
        step_of = torch.compile(model, fullgraph=True, backend=count)
        shapes = [layer.keys.shape for layer in fixed.layers]
        for step, token in enumerate(tokens):
            found = step_of(
                input_ids=token, past_key_values=fixed, attention_mask=longest, **positions(model, inputs, step)
            ).logits
            assert (found - expected[step]).abs().max() < 1e-10
    assert len(graphs) == 1
    assert shapes == [layer.keys.shape for layer in fixed.layers]


def has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


@pytest.mark.skipif(not has_compiler(), reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_compiles_a_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code, not a counting backend: five steps from one graph, layers that hold three different lengths."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    schedule = Schedule(
        stages=(
            Stage(first=0, last=1, visual_attention="self", text_to_visual="merge", cache_visual="kept"),
            Stage(first=1, last=2, cache_visual="kept", selects=(select("influence_l2", 5),)),
            Stage(first=2, last=3, cache_visual="none"),
        )
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, inputs = tiny.model("llava", layers=3), tiny.inputs("llava", batch=2, left_pad=3)
    tokens = torch.randint(5, 100, (STEPS, 2, 1), generator=torch.Generator().manual_seed(2))
    longest = torch.nn.functional.pad(inputs["attention_mask"], (0, STEPS + 1), value=1)
    length = inputs["input_ids"].shape[1]
    with attach(model, schedule), torch.inference_mode():
        growing = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        assert len({layer.keys.shape[2] for layer in growing.layers}) == 3
        fixed = fix(model(**inputs, use_cache=True, logits_to_keep=1).past_key_values, STEPS + 1)
        step_of = torch.compile(model, fullgraph=True)
        for step, token in enumerate(tokens):
            mask = longest[:, : length + step + 1]
            expected = model(input_ids=token, past_key_values=growing, attention_mask=mask).logits
            found = step_of(input_ids=token, past_key_values=fixed, attention_mask=longest).logits
            # The modelling code casts to float32 in places, where fused kernels round differently.
            assert (found - expected).abs().max() < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_what_cannot_be_fixed_is_refused() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    with torch.inference_mode():
        dense = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(RuntimeStateError, match="filled under a plan"):
            fix(dense, 4)
        with attach(model, SCHEDULES["fastv"]):
            cache = DynamicCache()
            model(**inputs, past_key_values=cache)
            with pytest.raises(InputError, match="at least 1"):
                fix(cache, 0)
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)
            with pytest.raises(RuntimeStateError, match="generated tokens already"):
                fix(cache, 4)
