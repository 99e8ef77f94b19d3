"""What only a GPU can show: half-precision kernels, no synchronisation surprises, memory that is really saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.runtime import ImageCache, attach
from planner.runtime.bench import bench
from tests import tiny
from tests.schedules import LAYERS, SCHEDULES, after_layer, select

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]
FAMILIES = ("llava", "qwen2_vl", "gemma3", "internvl")
NAMES = ("fastv", "random", "visipruner", "probe", "threshold", "context-fastv", "var-fastv")


def on_gpu(value: Any, dtype: torch.dtype) -> Any:
    return {name: (x.to("cuda", dtype) if x.is_floating_point() else x.to("cuda")) for name, x in value.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_gpu_equals_cpu_in_float64(family: str, name: str) -> None:
    inputs = tiny.inputs(family, batch=2, left_pad=3)
    here, there = tiny.model(family, layers=LAYERS), tiny.model(family, layers=LAYERS, fresh=True).cuda()
    with torch.no_grad():
        with attach(here, SCHEDULES[name]):
            expected = here(**inputs, logits_to_keep=1).logits
        with attach(there, SCHEDULES[name]):
            found = there(**on_gpu(inputs, torch.float64), logits_to_keep=1).logits
    assert (found.cpu() - expected).abs().max() < 1e-5  # the modelling code itself casts to float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_generates(family: str, dtype: torch.dtype) -> None:
    model = tiny.model(family, layers=LAYERS, fresh=True).to("cuda", dtype)
    inputs = on_gpu(tiny.inputs(family, batch=2, left_pad=3), dtype)
    with torch.no_grad(), attach(model, SCHEDULES["visipruner"], image_cache=ImageCache()):
        for _ in range(2):
            found = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            assert found.shape[1] == inputs["input_ids"].shape[1] + 8


def test_fewer_tokens_hold_less_memory() -> None:
    model = tiny.model("llava", layers=LAYERS, fresh=True).to("cuda", torch.bfloat16)
    inputs = on_gpu(tiny.inputs("llava", batch=8), torch.bfloat16)
    result = bench(model, inputs, after_layer(0, select("none", 0), cache_visual="none"), rounds=2, new_tokens=4)
    assert result.planned.kv_cache_bytes * 26 == result.dense.kv_cache_bytes * 10
    assert result.dense.peak_memory_bytes is not None
