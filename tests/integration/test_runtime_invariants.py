"""What attaching a schedule must never change: neighbours in a batch, padding, prompts without an image, the model."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from planner.runtime import attach
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation, generate, logits
from tests.integration.test_runtime_equality import FAMILIES, TOLERANCE, difference
from tests.schedules import LAYERS, SCHEDULES

#: Scores and exits; keeps different numbers; draws lots; edits weights; drops text.
SOME = ("visipruner", "threshold-relative", "prellm-random", "var-fastv", "context-fastv")


def pairs() -> list[tuple[str, str]]:
    """Each family with one of the schedules in turn, LLaVA with all."""
    turns = [(family, SOME[i % len(SOME)]) for i, family in enumerate(FAMILIES)]
    return sorted({*turns, *(("llava", name) for name in SOME)})


@pytest.mark.parametrize(("family", "name"), pairs())
def test_a_batch_equals_its_samples_alone(family: str, name: str) -> None:
    """Samples with other image sizes or numbers of images, other text lengths, the shorter ones padded on the left."""
    model = tiny.model(family, layers=LAYERS)
    batch = {"batch": 2, "left_pad": 2, "ragged": True}
    generated = continuation(2, steps=3)
    with attach(model, SCHEDULES[name]):
        together = logits(model, tiny.inputs(family, **batch), generated)
        for sample in range(2):
            alone = logits(model, tiny.inputs(family, **batch, only=sample), generated[sample : sample + 1])
            assert difference([step[sample : sample + 1] for step in together], alone) < TOLERANCE


@pytest.mark.parametrize(("family", "name"), pairs())
def test_padding_changes_nothing(family: str, name: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    with attach(model, SCHEDULES[name]):
        bare = logits(model, tiny.inputs(family), continuation(1))
        padded = logits(model, tiny.inputs(family, left_pad=5), continuation(1))
    assert difference(bare, padded) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_without_an_image_stays_dense(family: str) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, images=0)
    plain = logits(model, inputs, continuation(1))
    with attach(model, SCHEDULES["visipruner"]):
        planned = logits(model, inputs, continuation(1))
    assert all(torch.equal(a, b) for a, b in zip(plain, planned, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_empty_schedule_changes_nothing(family: str) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=2, left_pad=2)
    plain = logits(model, inputs, continuation(2))
    with attach(model, SCHEDULES["dense"]):
        planned = logits(model, inputs, continuation(2))
    assert difference(plain, planned) < 1e-12


def snapshot(model: Any) -> dict[str, Any]:
    """Everything a handle could leave behind."""
    state: dict[str, Any] = {
        "names of attention": sorted(AttentionInterface._global_mapping),
        "names of masks": sorted(AttentionMaskInterface._global_mapping),
    }
    for name, module in model.named_modules():
        state[f"hooks of {name}"] = [
            list(hooks)
            for hooks in (
                module._forward_pre_hooks,
                module._forward_hooks,
                module._forward_pre_hooks_with_kwargs,
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
            )
        ]
        state[f"attributes of {name}"] = {key: id(value) for key, value in vars(module).items() if key != "rope_deltas"}
        config = getattr(module, "config", None)
        if config is not None:
            state[f"config of {name}"] = (config._attn_implementation, config.to_json_string())
    state["weights"] = {key: value.clone() for key, value in model.state_dict().items()}
    return state


def assert_unchanged(model: Any, before: dict[str, Any]) -> None:
    after = snapshot(model)
    weights, weights_before = after.pop("weights"), before["weights"]
    assert all(torch.equal(weights[key], weights_before[key]) for key in weights_before)
    assert after == {key: value for key, value in before.items() if key != "weights"}


class Stop(BaseException):
    """Stands for an interrupt."""


@pytest.mark.parametrize(
    ("family", "attn", "name"),
    [
        ("llava", "sdpa", "visipruner"),
        ("llava", "eager", "var-fastv"),
        ("qwen3_vl", "sdpa", "probe"),
        ("qwen3_vl", "eager", "prellm-visipruner"),
        ("gemma3", "sdpa", "var-fastv"),
        ("gemma3", "eager", "visipruner"),
        ("qwen2_5_vl", "sdpa", "prellm-visipruner"),
    ],
)
def test_detaching_restores_the_model_bit_for_bit(family: str, attn: str, name: str) -> None:
    model, inputs = tiny.model(family, attn=attn, layers=LAYERS), tiny.inputs(family, batch=2, left_pad=2)
    plain = logits(model, inputs, continuation(2))
    before = snapshot(model)
    handle = attach(model, SCHEDULES[name])
    changed = logits(model, inputs, continuation(2))
    handle.detach()
    handle.detach()
    assert_unchanged(model, before)
    assert difference(plain, changed) > 1e-3, "the schedule did nothing, so this test shows nothing"
    again = logits(model, inputs, continuation(2))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("layer", [0, 1, 3, 5])
def test_an_exception_in_a_layer_leaves_nothing_behind(error: type[BaseException], layer: int) -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    plain = logits(model, inputs, continuation(1))
    before = snapshot(model)

    def fail(*_: Any) -> None:
        raise error

    with pytest.raises(error), attach(model, SCHEDULES["visipruner"]):
        hook = model.get_decoder().layers[layer].mlp.register_forward_pre_hook(fail)
        try:
            logits(model, inputs, continuation(1))
        finally:
            hook.remove()
    assert_unchanged(model, before)
    assert all(torch.equal(a, b) for a, b in zip(plain, logits(model, inputs, continuation(1)), strict=True))


def test_a_failed_prefill_does_not_spoil_the_next() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with attach(model, SCHEDULES["visipruner"]):
        good = logits(model, inputs, continuation(1))
        hook = model.get_decoder().layers[4].mlp.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            logits(model, inputs, continuation(1))
        hook.remove()
        again = logits(model, inputs, continuation(1))
    assert all(torch.equal(a, b) for a, b in zip(good, again, strict=True))


def test_attaching_refuses_halfway_without_a_trace() -> None:
    from planner.errors import PlannerError
    from planner.schedule import dense

    model = tiny.model("llava", layers=LAYERS)
    before = snapshot(model)
    with pytest.raises(PlannerError, match="layers"):
        attach(model, dense(LAYERS + 1))
    with attach(model, SCHEDULES["fastv"]), pytest.raises(PlannerError, match="attached"):
        attach(model, SCHEDULES["fastv"])
    assert_unchanged(model, before)


def test_a_detached_handle_is_forgotten() -> None:
    """Neither the model nor a registry keeps the hidden states of the last prompt alive."""
    import weakref

    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    handle = attach(model, SCHEDULES["visipruner"])
    output = generate(model, inputs, continuation(1))
    handle.detach()
    watch = weakref.ref(handle)
    del handle, output
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("name", SOME)
def test_forward_without_a_cache(name: str) -> None:
    """``use_cache=False``: the prompt alone gives the same last logits."""
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=2, left_pad=2, ragged=True)
    with attach(model, SCHEDULES[name]), torch.no_grad(), float64_throughout():
        bare = model(**inputs, use_cache=False).logits[:, -1]
        cached = model(**inputs, use_cache=True).logits[:, -1]
    assert (bare - cached).abs().max() < TOLERANCE
