"""Models inside other people's wrappers: LoRA adapters of PEFT, weights that accelerate has put elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from planner.errors import RuntimeStateError
from planner.runtime import ImageCache, attach
from planner.runtime.model.fingerprint import model_fingerprint
from tests import tiny
from tests.forced import continuation, logits
from tests.integration.test_runtime_equality import TOLERANCE, difference
from tests.integration.test_runtime_image_stream import plan_for
from tests.integration.test_runtime_invariants import assert_unchanged, snapshot
from tests.reference import run
from tests.schedules import LAYERS, SCHEDULES

NAMES = ("visipruner", "probe", "var-fastv")


def with_lora(family: str = "llava") -> Any:
    """A model with random low-rank adapters on every projection of its text tower."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        init_lora_weights=False,
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|down_proj)",
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        wrapped = peft.get_peft_model(tiny.model(family, layers=LAYERS, fresh=True), config)
    return wrapped.to(torch.float64).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_adapters_count_and_stay(family: str, name: str) -> None:
    model = with_lora(family)
    inputs = tiny.inputs(family, batch=2, left_pad=2)
    generated = continuation(2, steps=3)
    plain = logits(model, inputs, generated)
    outcome = run(model.get_base_model(), inputs, SCHEDULES[name], generated)
    before = snapshot(model)
    with plan_for(model, SCHEDULES[name]).apply(model):
        found = logits(model, inputs, generated)
    assert difference(found, [outcome.prefill, *outcome.steps]) < TOLERANCE
    assert_unchanged(model, before)
    assert all(torch.equal(a, b) for a, b in zip(plain, logits(model, inputs, generated), strict=True))
    bare = tiny.model(family, layers=LAYERS)
    with attach(bare, SCHEDULES[name]):
        assert difference(found, logits(bare, inputs, generated)) > 1e-3, "the adapters did nothing"


def test_an_image_stream_belongs_to_its_adapters() -> None:
    model, inputs, cache = with_lora(), tiny.inputs("llava"), ImageCache()
    for number in range(2):
        with attach(model, SCHEDULES["visipruner"], image_cache=cache):
            logits(model, inputs, continuation(1))
        with model.disable_adapter(), attach(model, SCHEDULES["visipruner"], image_cache=cache):
            logits(model, inputs, continuation(1))
        assert (len(cache), cache.hits) == (2, 2 * number)


def test_accelerate_offloads_to_memory() -> None:
    from accelerate import cpu_offload

    inputs = tiny.inputs("llava", batch=2, left_pad=2)
    offloaded = tiny.model("llava", layers=LAYERS, fresh=True)
    cpu_offload(offloaded, execution_device="cpu")
    assert_the_same(offloaded, inputs)


def test_accelerate_dispatches_to_disk(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    inputs = tiny.inputs("llava", batch=2, left_pad=2)
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    places |= {f"model.language_model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb")}
    places |= {f"model.language_model.layers.{i}": ("cpu", "disk")[i % 2] for i in range(LAYERS)}
    dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert model.model.language_model.layers[1].mlp.down_proj.weight.is_meta
    assert_the_same(model, inputs)


def assert_the_same(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """A model whose weights are elsewhere computes what one that holds them does, and shares its image streams."""
    plain = tiny.model("llava", layers=LAYERS)
    generated = continuation(2, steps=2)
    assert model_fingerprint(model) == model_fingerprint(plain)
    for name in NAMES:
        with attach(plain, SCHEDULES[name]):
            expected = logits(plain, inputs, generated)
        with attach(model, SCHEDULES[name]):
            assert all(torch.equal(a, b) for a, b in zip(logits(model, inputs, generated), expected, strict=True))
    cache = ImageCache()
    with attach(plain, SCHEDULES["visipruner"], image_cache=cache):
        expected = logits(plain, inputs, generated)
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        assert difference(logits(model, inputs, generated), expected) < TOLERANCE
    assert cache.hits == 1


def test_an_attention_function_of_the_users_own() -> None:
    """Registered the way transformers documents it, in use, refused by name, and left in use."""

    def own(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return AttentionInterface._global_mapping["sdpa"](module, query, key, value, mask, **options)

    model, inputs = tiny.model("llava", layers=LAYERS, fresh=True), tiny.inputs("llava")
    AttentionInterface.register("my_own", own)
    AttentionMaskInterface.register("my_own", AttentionMaskInterface._global_mapping["sdpa"])
    try:
        model.set_attn_implementation("my_own")
        plain = logits(model, inputs, continuation(1))
        with pytest.raises(RuntimeStateError, match="'my_own' is not supported with a plan"):
            attach(model, SCHEDULES["fastv"])
        assert all(torch.equal(a, b) for a, b in zip(plain, logits(model, inputs, continuation(1)), strict=True))
    finally:
        AttentionInterface._global_mapping.pop("my_own", None)
        AttentionMaskInterface._global_mapping.pop("my_own", None)
