"""Plans on models most of whose layers keep a state: what it is, how decoding goes on from it, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.cost import cost
from planner.errors import RuntimeStateError, ScheduleError, UnsupportedModelError
from planner.runtime import ImageCache, attach, fix, observe
from planner.runtime.count import FlopCounter
from planner.schedule import Schedule, Stage
from planner.spec import ModelSpec
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation, logits
from tests.integration.test_cost_counted import BATCH, cache_bytes, workload_of
from tests.integration.test_families_equality import difference
from tests.schedules import HYBRID, LAYERS, NOTHING, SCHEDULES, after_layer, select

FAMILIES = ("qwen3_5", "lfm2_vl")
#: Text sees the same in prefill and decoding, and nothing is ranked by the last row: so a cache changes nothing.
CACHE_FREE = after_layer(3, select("none", 0))


def ready(family: str, **batch: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    return tiny.model(family, layers=LAYERS).requires_grad_(False), tiny.inputs(family, **batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["random", "hybrid-visipruner", "hybrid-fastv"])
def test_states_are_those_of_the_rows_that_ran(family: str, name: str) -> None:
    """Each layer's own mixer, over the rows that came to it: the states that it leaves are those in the cache."""
    model, inputs = ready(family)
    came: dict[int, torch.Tensor] = {}
    mixers = {m.layer_idx: m for m in model.modules() if hasattr(m, "conv_kernel_size")}
    hooks = [
        mixer.register_forward_pre_hook(
            lambda m, _, kw: came.update({m.layer_idx: kw["hidden_states"]}), with_kwargs=True
        )
        for mixer in mixers.values()
    ]
    with torch.no_grad(), float64_throughout():
        with attach(model, HYBRID.get(name) or SCHEDULES[name]):
            cache = model(**inputs, use_cache=True).past_key_values
        for hook in hooks:
            hook.remove()
        fresh = model(**tiny.inputs(family, images=0), use_cache=True).past_key_values
        for index, mixer in mixers.items():
            fresh.layers[index] = type(fresh.layers[index])()
            name_of_cache = "cache_params" if family == "qwen3_5" else "past_key_values"
            mixer(hidden_states=came[index], **{name_of_cache: fresh})
    assert len(came) == 4 and len({hidden.shape[1] for hidden in came.values()}) > 1
    for index in mixers:
        for kind in ("conv_states", "recurrent_states"):
            found, expected = getattr(cache.layers[index], kind)[0], getattr(fresh.layers[index], kind)[0]
            assert (found is None) == (expected is None)
            if found is not None:
                assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["hybrid-visipruner", "hybrid-threshold"])
def test_a_batch_is_its_samples(family: str, name: str) -> None:
    model = ready(family)[0]
    batch = {"batch": 2, "left_pad": 3, "ragged": True}
    generated = continuation(2)
    with attach(model, HYBRID[name]):
        together = logits(model, tiny.inputs(family, **batch), generated)
        for sample in range(2):
            alone = logits(model, tiny.inputs(family, **batch, only=sample), generated[sample : sample + 1])
            assert difference([x[sample : sample + 1] for x in together], alone) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [{}, {"batch": 2, "left_pad": 3}])
def test_generation_with_and_without_a_cache(family: str, batch: dict[str, Any]) -> None:
    model, inputs = ready(family, **batch)
    options = {"max_new_tokens": 5, "do_sample": False}
    with attach(model, CACHE_FREE), torch.no_grad(), float64_throughout():
        expected = model.generate(**inputs, **options)
        assert torch.equal(model.generate(**inputs, **options, use_cache=False), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_carry_their_own_states(family: str) -> None:
    """The score of the best one is that of its tokens, generated alone."""
    model, inputs = ready(family)
    options = {"do_sample": False, "num_beams": 3, "output_scores": True, "return_dict_in_generate": True}
    with attach(model, HYBRID["hybrid-fastv"]), torch.no_grad(), float64_throughout():
        found = model.generate(**inputs, max_new_tokens=5, **options)
        best = found.sequences[:, inputs["input_ids"].shape[1] :]
        steps = [step.log_softmax(-1) for step in logits(model, inputs, best)]
    expected = sum(float(step[0, token]) for step, token in zip(steps, best[0], strict=False)) / 5
    assert abs(float(found.sequences_scores[0]) - expected) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_scored_with_its_prompt(family: str) -> None:
    model, prompts = ready(family, batch=2, left_pad=3)
    answers = continuation(2, 4)
    both = {**prompts, "input_ids": torch.cat([prompts["input_ids"], answers], dim=1)}
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in prompts:
            both[name] = torch.nn.functional.pad(prompts[name], (0, 4), value=int(name == "attention_mask"))
    with attach(model, HYBRID["hybrid-fastv"]), torch.no_grad(), float64_throughout():
        expected = torch.stack(logits(model, prompts, answers), dim=1)
        found = model(**both, logits_to_keep=5).logits
    assert (found - expected).abs().max() < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["hybrid-visipruner", "hybrid-probe", "hybrid-entry"])
def test_bytes_and_steps_are_as_predicted(family: str, name: str) -> None:
    model, inputs = ready(family, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of(family, spec, inputs), HYBRID[name], head="all")
    with attach(model, HYBRID[name]), torch.no_grad():
        output = model(**inputs, use_cache=True)
        assert cache_bytes(output.past_key_values) == expected.kv_cache_bytes
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        with FlopCounter() as step:
            model(
                input_ids=torch.full((BATCH, 1), 7),
                attention_mask=mask,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
    assert step.total == BATCH * expected.decode_flops_per_token


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_image_gives_what_is_computed(family: str) -> None:
    """Rows that are alone from layer 0 on belong to the image, in recurrent layers too."""
    model, first = ready(family)
    second = tiny.inputs(family, text=5)
    for name, value in first.items():
        if name not in ("input_ids", "attention_mask", "mm_token_type_ids"):
            second[name] = value
    with attach(model, HYBRID["hybrid-visipruner"]):
        expected = logits(model, second, continuation(1))
    cache = ImageCache(max_bytes=1 << 20)
    with attach(model, HYBRID["hybrid-visipruner"], image_cache=cache):
        logits(model, first, continuation(1))
        assert len(cache) == 1
        with torch.no_grad(), FlopCounter() as counter:
            model(**second)
        spec = ModelSpec.from_config(model.config.to_dict())
        workload = workload_of(family, spec, second).model_copy(update={"batch": 1, "image_stream_cached": True})
        assert counter.total == cost(spec, workload, HYBRID["hybrid-visipruner"], head="all").prefill_flops
        assert difference(logits(model, second, continuation(1)), expected) < 1e-10


def test_a_step_without_the_plan_is_refused_before_any_state_moves() -> None:
    model, inputs = ready("qwen3_5")
    with attach(model, HYBRID["hybrid-fastv"]), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    before = [state.clone() for state in cache.layers[0].conv_states.values()]
    with pytest.raises(RuntimeStateError, match="has been detached"), torch.no_grad():
        model(input_ids=torch.tensor([[7]]), past_key_values=cache, use_cache=True)
    assert torch.equal(before[0], cache.layers[0].conv_states[0])


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (SCHEDULES["fastv"], "layer 1 would rank by its attention.*Rank after a layer with attention: 2, 5"),
        (SCHEDULES["probe-dense"], "layer 3 would rank"),
        (SCHEDULES["context"], "layer 0 would rank"),
        (SCHEDULES["prefix"], r"recurrent layers \(0, 1\).*prefix"),
        (SCHEDULES["visipruner"], "'self' with text_to_visual 'merge'"),
        (SCHEDULES["visipruner-self"], "'self' with text_to_visual 'full'"),
        (SCHEDULES["visipruner-mixed"], "'full' with text_to_visual 'none'"),
        (SCHEDULES["skip"], "'skip' with text_to_visual 'full'"),
    ],
)
def test_what_recurrent_layers_cannot_do(schedule: Schedule, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        attach(ready("qwen3_5")[0], schedule)


def test_a_stage_without_recurrent_layers_may_ask_anything() -> None:
    """Layer 2 attends: there the image may be hidden from the text."""
    hidden = Stage(first=2, last=3, text_to_visual="none", cache_visual="none")
    handle = attach(ready("qwen3_5")[0], Schedule(stages=(Stage(first=0, last=2), hidden, Stage(first=3, last=6))))
    handle.detach()


def test_fixed_shapes_are_refused() -> None:
    model, inputs = ready("qwen3_5")
    with attach(model, after_layer(0, NOTHING)) as handle, torch.no_grad():
        with pytest.raises(UnsupportedModelError, match="recurrent"):
            handle.compile_prefill()
        with pytest.raises(RuntimeStateError, match="recurrent"):
            fix(model(**inputs, use_cache=True).past_key_values, 4)


def test_signals_are_those_of_the_layers_that_attend() -> None:
    model, inputs = ready("qwen3_5")
    named = pytest.raises(UnsupportedModelError, match=r"observing every layer needs attention.*0, 1, 3, 4 of qwen3_5")
    with named, observe(model, lambda _: None):
        pass
    seen: list[int] = []
    with observe(model, lambda view: seen.append(view.layer), layers=(2, 5)), torch.no_grad():
        model(**inputs)
    assert seen == [2, 5]


def test_biased_convolutions_are_refused() -> None:
    model = tiny.model("lfm2_vl", layers=LAYERS, fresh=True)
    model.config.get_text_config().conv_bias = True
    with pytest.raises(UnsupportedModelError, match="biased convolutions"):
        attach(model, HYBRID["hybrid-fastv"])
