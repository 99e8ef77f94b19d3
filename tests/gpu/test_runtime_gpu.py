"""What only a GPU can show: half-precision kernels, no synchronisation surprises, memory that is really saved."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
NAMES = ("fastv", "random", "visipruner", "probe", "prefix-read", "threshold", "context-fastv", "var-fastv")


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


@pytest.mark.parametrize("name", ["fastv", "visipruner", "prefix"])
def test_a_compiled_prefill_replays_as_a_graph(name: str) -> None:
    """CUDA graphs write into the same memory at every replay: prompts in turn must keep their own caches."""
    model = tiny.model("llava", layers=LAYERS, fresh=True).to("cuda", torch.float32)
    prompts = [on_gpu(tiny.inputs("llava", text=text, seed=text), torch.float32) for text in (5, 6, 7)]
    options = {"max_new_tokens": 4, "do_sample": False}
    torch._dynamo.reset()
    with torch.inference_mode(), attach(model, SCHEDULES[name]) as handle:
        expected = [model(**prompt).logits[:, -1] for prompt in prompts]
        answers = [model.generate(**prompt, **options) for prompt in prompts]
        handle.compile_prefill(buckets=(32,), mode="reduce-overhead")
        for _ in range(3):
            outputs = [model(**prompt, use_cache=True) for prompt in prompts]
            for output, logits in zip(outputs, expected, strict=True):
                assert (output.logits[:, -1] - logits).abs().max() < 1e-3
        assert all(torch.equal(model.generate(**x, **options), y) for x, y in zip(prompts, answers, strict=True))


def test_threads_on_a_gpu_get_their_own_answers() -> None:
    model = tiny.model("llava", layers=LAYERS, fresh=True).cuda()
    prompts = [on_gpu(tiny.inputs("llava", seed=seed), torch.float64) for seed in range(8)]

    def ask(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return model.generate(**inputs, max_new_tokens=4, do_sample=False)

    with attach(model, SCHEDULES["visipruner"]), ThreadPoolExecutor(8) as pool:
        expected = [ask(inputs) for inputs in prompts]
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(pool.map(ask, prompts), expected, strict=True))
