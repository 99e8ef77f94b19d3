"""Every way of generating, with a plan attached, against greedy search or a forward without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, TextIteratorStreamer

from planner.errors import RuntimeStateError
from planner.runtime import attach
from tests import tiny
from tests.float64 import float64_throughout
from tests.schedules import LAYERS, SCHEDULES, after_layer, select

FAMILIES = ("llava", "qwen2_vl", "gemma3", "smolvlm")
STEPS = 6
#: Text sees the same in prefill and decoding, and nothing is ranked by the last row: so a cache changes nothing.
CACHE_FREE = after_layer(3, select("none", 0))


def greedy(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    with torch.no_grad(), float64_throughout():
        found = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, **options)
    return found[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [{}, {"batch": 2, "left_pad": 3}, {"batch": 2, "ragged": True, "left_pad": 1}])
def test_without_a_cache(family: str, batch: dict[str, Any]) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, **batch)
    with attach(model, CACHE_FREE):
        assert torch.equal(greedy(model, inputs), greedy(model, inputs, use_cache=False))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["fastv", "visipruner", "threshold", "var-fastv"])
def test_assisted_decoding_equals_greedy(family: str, name: str) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family)
    with attach(model, SCHEDULES[name]):
        expected = greedy(model, inputs)
        assert torch.equal(greedy(model, inputs, prompt_lookup_num_tokens=3), expected)


@pytest.mark.parametrize("name", ["fastv", "visipruner", "threshold"])
def test_an_answer_scored_in_one_forward(name: str) -> None:
    """logits_to_keep = 1 + c: the last c tokens are a continuation, as if they had been generated one by one."""
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=2, left_pad=3)
    with attach(model, SCHEDULES[name]), torch.no_grad(), float64_throughout():
        found = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        whole = {
            **inputs,
            "input_ids": found.sequences[:, :-1],
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1),
        }
        scored = model(**whole, logits_to_keep=4).logits
    assert (scored - torch.stack(found.logits, dim=1)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["visipruner", "pool", "cdpruner"])
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search_of_a_batch_equals_each_sample_alone(family: str, name: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    both = tiny.inputs(family, batch=2, left_pad=2)
    options = {"num_beams": 3, "output_scores": True, "return_dict_in_generate": True, "max_new_tokens": STEPS}
    with attach(model, SCHEDULES[name]), torch.no_grad(), float64_throughout():
        together = model.generate(**both, do_sample=False, **options)
        for sample in range(2):
            one = tiny.inputs(family, batch=2, left_pad=2, only=sample)
            alone = model.generate(**one, do_sample=False, **options)
            assert torch.equal(together.sequences[sample, -STEPS:], alone.sequences[0, -STEPS:])
            assert abs(together.sequences_scores[sample] - alone.sequences_scores[0]) < 1e-8


@pytest.mark.parametrize("name", ["fastv", "visipruner", "threshold", "diverse", "merge-nearest"])
def test_batch_equals_single(name: str) -> None:
    model, both = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=2, left_pad=3)
    with attach(model, SCHEDULES[name]):
        together = greedy(model, both)
        alone = [greedy(model, tiny.inputs("llava", batch=2, left_pad=3, only=sample)) for sample in range(2)]
    assert torch.equal(together, torch.cat(alone))


def test_sampling_repeats_with_its_seed_and_several_sequences() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    found = []
    with attach(model, SCHEDULES["visipruner"]), torch.no_grad():
        for _ in range(2):
            torch.manual_seed(5)
            found.append(model.generate(**inputs, max_new_tokens=STEPS, do_sample=True, num_return_sequences=3))
    assert found[0].shape[0] == 3
    assert torch.equal(*found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_goes_on_from_the_pruned_cache(family: str) -> None:
    """A turn of three tokens over a pruned cache equals the same tokens one by one."""
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family)
    more = torch.tensor([[7, 8, 9]])
    with attach(model, SCHEDULES["visipruner"]), torch.no_grad(), float64_throughout():
        together, single = DynamicCache(), DynamicCache()
        for cache in (together, single):
            model(**inputs, past_key_values=cache, use_cache=True)
        at_once = model(input_ids=more, past_key_values=together).logits[:, -1]
        for step in range(3):
            one_by_one = model(input_ids=more[:, step : step + 1], past_key_values=single).logits[:, -1]
    assert (at_once - one_by_one).abs().max() < 1e-10


def test_generate_takes_a_second_turn() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    with attach(model, SCHEDULES["fastv"]), torch.no_grad():
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[11, 12]])], dim=1)
        second = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=first.past_key_values,
            max_new_tokens=3,
            do_sample=False,
        )
    assert second.shape[1] == ids.shape[1] + 3


@pytest.mark.parametrize("family", FAMILIES)
def test_text_only_prompts_stay_dense(family: str) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, images=0)
    expected = greedy(model, inputs)
    with attach(model, SCHEDULES["visipruner"]) as handle:
        assert torch.equal(greedy(model, inputs), expected)
        assert handle.report is None


def test_streaming() -> None:
    class Tokens(TextIteratorStreamer):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen += value.flatten().tolist()

        def end(self) -> None:
            pass

    model, inputs, streamer = tiny.model("llava", layers=LAYERS), tiny.inputs("llava"), Tokens()
    with attach(model, SCHEDULES["fastv"]):
        expected = greedy(model, inputs)
        greedy(model, inputs, streamer=streamer)
    assert streamer.seen[-STEPS:] == expected[0].tolist()


def test_kept_tokens_and_tokens_per_layer_are_reported() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", batch=2, left_pad=3)
    with attach(model, SCHEDULES["fastv"]) as handle, torch.no_grad():
        model(**inputs)
    assert handle.report is not None
    assert handle.report.visual == ((16, 16), (16, 16), (5, 5), (5, 5), (5, 5), (5, 5))
    assert handle.report.text == ((10, 13),) * 6
    (kept,) = handle.kept
    assert [len(sample) for sample in kept] == [5, 5]
    assert all(sample == sorted(set(sample)) and sample[0] >= 0 and sample[-1] < 16 for sample in kept)


def test_a_cache_outlives_its_plan_only_with_an_error() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    cache = DynamicCache()
    with torch.no_grad():
        with attach(model, SCHEDULES["fastv"]):
            model(**inputs, past_key_values=cache)
        with pytest.raises(RuntimeStateError, match="has been detached"):
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)
