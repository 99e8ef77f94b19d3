"""The cost model predicts what runs: integer equality of FLOPs and cache bytes with a plan attached.

By default each family meets every fifth static schedule, kernels and numbers of images taking turns; ``FULL_MATRIX=1``
runs the whole product.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch

from planner.cost import Cost, cost
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.schedule import Schedule
from planner.spec import ModelSpec
from tests import tiny
from tests.forced import continuation
from tests.integration.test_cost_counted import BATCH, cache_bytes, next_token, workload_of
from tests.integration.test_runtime_equality import FAMILIES
from tests.reference import run
from tests.schedules import LAYERS, SCHEDULES, static

STATIC = [name for name, schedule in SCHEDULES.items() if static(schedule)]
#: Wider than every tiny prompt. Where a window is narrower, what a pruned cache holds depends on which tokens survived.
WIDE = 256


def modes_of(family: str, name: str) -> list[tuple[str, int]]:
    """(kernel, images) under which a family is counted with a schedule."""
    # Text between images is also read by later visual rows, which a workload (one block of them) does not know.
    read_twice = any(select.rank_by == "attention_received" for select in SCHEDULES[name].selects)
    # These towers attend within one image, and the tiny images are below their least size in pixels.
    by_pixels = family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v")
    # These workloads do not say what images they are of.
    entry = SCHEDULES[name].entry
    by_image = entry is not None and entry.per != "prompt"
    return list(itertools.product(("sdpa", "eager"), (1,) if read_twice or by_pixels or by_image else (1, 2)))


def matrix() -> list[tuple[str, str, str, int]]:
    """(family, schedule, kernel, images)."""
    if os.environ.get("FULL_MATRIX"):
        return [(f, s, *mode) for f, s in itertools.product(FAMILIES, STATIC) for mode in modes_of(f, s)]
    pairs = itertools.product(enumerate(FAMILIES), enumerate(STATIC))
    chosen = [((f, family), (s, name)) for (f, family), (s, name) in pairs if (f + s) % 5 == 0]
    return [
        (family, name, *modes_of(family, name)[f % len(modes_of(family, name))]) for (f, family), (s, name) in chosen
    ]


def predicted(model: Any, family: str, inputs: dict[str, torch.Tensor], schedule: Schedule) -> Cost:
    spec = ModelSpec.from_config(model.config.to_dict())
    return cost(spec, workload_of(family, spec, inputs), schedule)


@pytest.mark.parametrize(("family", "name", "attn", "images"), matrix())
def test_predicted_equals_executed(family: str, name: str, attn: str, images: int) -> None:
    model = tiny.model(family, attn=attn, layers=LAYERS, window=WIDE)
    inputs = tiny.inputs(family, batch=BATCH, images=images)
    expected = predicted(model, family, inputs, SCHEDULES[name])
    with attach(model, SCHEDULES[name]), torch.no_grad():
        with FlopCounter() as prefill:
            output = model(**inputs, use_cache=True, logits_to_keep=1)
        held = cache_bytes(output.past_key_values)
        with FlopCounter() as decode:
            model(**next_token(family, inputs, output))
        held_after = cache_bytes(output.past_key_values)
    assert prefill.total == expected.prefill_flops
    assert held == expected.kv_cache_bytes
    assert decode.total == BATCH * expected.decode_flops_per_token
    assert held_after == expected.kv_cache_bytes_after(1)


@pytest.mark.parametrize("name", ["dense", "fastv", "visipruner", "context-fastv", "threshold-relative"])
@pytest.mark.parametrize("family", ["llava", "llava-mistral", "gemma3", "cohere2_vision"])
def test_the_cache_holds_what_decoding_can_still_see(family: str, name: str) -> None:
    """Layer by layer against the reference, sliding windows shorter than the prompt included."""
    model = tiny.model(family, layers=LAYERS)
    inputs = tiny.inputs(family)
    outcome = run(model, inputs, SCHEDULES[name], continuation(1))
    with attach(model, SCHEDULES[name]), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * LAYERS
    for layer, cached in enumerate(outcome.cached):
        window = tiny.window_of(model.config) if kinds[layer] == "sliding_attention" else None
        # The next token completes the window.
        visible = cached[:, -(window - 1) :] if window else cached
        assert cache.layers[layer].keys.shape[2] == int(visible.sum())
