"""What would go past a plan silently is refused by name: copies, other kernels, chunks, parts of the model alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from planner.errors import RuntimeStateError, UnsupportedModelError
from planner.runtime import ImageCache, attach
from planner.runtime.imaging.grids import pictures_of
from planner.runtime.tensors.layout import read_layout
from planner.schedule import Count, Schedule, Select, Stage
from planner.spec.encoded import LONE, Grid
from tests import tiny
from tests.integration.test_runtime_image_cache import video_inputs
from tests.integration.test_runtime_invariants import assert_unchanged, snapshot
from tests.schedules import LAYERS, SCHEDULES

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": list(range(118, 128))}


def ids() -> list[list[int]]:
    return [tiny.inputs("llava")["input_ids"][0].tolist()]


BYPASSES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "deep copy": (copy.deepcopy, "cannot be copied or pickled"),
    "deep copy of its inner model": (lambda m: copy.deepcopy(m.model), "cannot be copied or pickled"),
    "pickle": (pickle.dumps, "cannot be copied or pickled"),
    "another kernel": (
        lambda m: (m.set_attn_implementation("eager"), m.generate(**tiny.inputs("llava"), **OPTIONS)),
        "set to 'eager' while a plan is attached",
    ),
    "chunks": (lambda m: m.generate(**tiny.inputs("llava"), **OPTIONS, prefill_chunk_size=8), "prefill_chunk_size"),
    "chunks by configuration": (
        lambda m: m.generate(
            **tiny.inputs("llava"), generation_config=GenerationConfig(**OPTIONS, prefill_chunk_size=8)
        ),
        "prefill_chunk_size",
    ),
    "continuous batching": (lambda m: m.generate_batch(inputs=ids()), "generate_batch batches requests"),
    "the inner model": (lambda m: m.model(**tiny.inputs("llava")), "without the model's forward"),
    "the text tower": (
        lambda m: m.model.language_model(input_ids=torch.tensor([[5, 6]])),
        "without the model's forward",
    ),
}


@pytest.mark.parametrize("way", BYPASSES)
def test_ways_past_a_plan_are_refused(way: str) -> None:
    act, message = BYPASSES[way]
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    model.generate(**tiny.inputs("llava"), **OPTIONS)
    before = snapshot(model)
    with torch.no_grad(), attach(model, SCHEDULES["visipruner"]), pytest.raises(RuntimeStateError, match=message):
        act(model)
    if way != "another kernel":  # which stays set, in what the plan does not touch
        assert_unchanged(model, before)


def test_a_copy_after_detaching_is_a_model_of_its_own() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS, fresh=True), tiny.inputs("llava")
    attach(model, SCHEDULES["visipruner"]).detach()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.language_model.norm.weight.zero_()
        assert model(**inputs).logits.abs().max() > 0 and other(**inputs).logits.abs().max() == 0


def test_the_first_image_after_a_turn_of_text_runs_dense_and_says_so() -> None:
    model, image, text = tiny.model("llava", layers=LAYERS), tiny.inputs("llava"), tiny.inputs("llava", images=0)

    def converse() -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        first = model.generate(**text, **OPTIONS, past_key_values=cache)
        both = torch.cat([first, image["input_ids"]], dim=1)
        pixels = {"pixel_values": image["pixel_values"]}
        return model.generate(both, attention_mask=torch.ones_like(both), **pixels, **OPTIONS, past_key_values=cache)

    dense = converse()
    with attach(model, SCHEDULES["visipruner"]) as handle:
        with pytest.warns(UserWarning, match="runs without the plan"):
            assert torch.equal(converse(), dense)
        assert handle.report is None


@pytest.mark.parametrize("probe", [False, True])
def test_a_window_that_hides_the_image_ranks_nothing(probe: bool) -> None:
    """Layer 1 of the tiny Gemma 3 sees 12 tokens; the question is longer."""
    model = tiny.model("gemma3", layers=LAYERS)
    select = Select(rank_by="last_attention", keep=Count(count=4), probe=probe)
    ranked = Schedule(
        stages=(Stage(first=0, last=1 if probe else 2, selects=(select,)), Stage(first=1 + (not probe), last=6))
    )
    with attach(model, ranked), torch.no_grad():
        model(**tiny.inputs("gemma3", text=5))
        with pytest.raises(
            RuntimeStateError, match=r"window of 12 tokens does not reach the image.*full attention: 2, 5"
        ):
            model(**tiny.inputs("gemma3", text=20))


@pytest.mark.parametrize("way", ["forward", "generate"])
def test_a_video_that_is_pooled_cannot_be_ranked_by_the_encoder(way: str) -> None:
    model, inputs = tiny.model("llava_onevision", layers=LAYERS), video_inputs("llava_onevision", 6)
    entry = Select(rank_by="encoder_attention", keep=Count(count=4))
    with attach(model, SCHEDULES["dense"].model_copy(update={"entry": entry})), torch.no_grad():
        model(**tiny.inputs("llava_onevision"))
        with pytest.raises(UnsupportedModelError, match=r"which this family pools.*rank_by=norm"):
            model(**inputs) if way == "forward" else model.generate(**inputs, **OPTIONS)


def one_cut_and_two_whole() -> dict[str, torch.Tensor]:
    """OneVision cuts a picture that is alone in its prompt, and none of several."""
    one, two = [5, 6, *[120] * 30, 7, 8, 9], [5, 6, *[120] * 10, 10, *[120] * 10, 7, 8, 9]
    batch = torch.tensor([one, [0] * (len(one) - len(two)) + two])
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": batch,
        "attention_mask": (batch != 0).long(),
        "pixel_values": torch.randn(3, 3, 3, 24, 24, generator=generator, dtype=torch.float64),
        "image_sizes": torch.tensor([[24, 48]] * 3),
        "batch_num_images": torch.tensor([1, 2]),
    }


@pytest.mark.parametrize("beams", [1, 2])
def test_a_cache_serves_batches_whose_images_cannot_be_told_apart(beams: int) -> None:
    """One sample with an any-resolution image, one with two base views: their tokens do not say which is whose."""
    model, inputs = tiny.model("llava_onevision", layers=LAYERS), one_cut_and_two_whole()
    with attach(model, SCHEDULES["visipruner"]):
        expected = model.generate(**inputs, **OPTIONS, num_beams=beams)
    cache = ImageCache()
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        for _ in range(2):
            assert torch.equal(model.generate(**inputs, **OPTIONS, num_beams=beams), expected)
    assert cache.hits == (1 if beams == 1 else 0)


def test_grids_of_pictures_that_are_not_cut() -> None:
    """Base view and tiles of the first prompt; of the second's two pictures, the view and the break behind it."""
    model, inputs = tiny.model("llava_onevision", layers=LAYERS), one_cut_and_two_whole()
    layout = read_layout(inputs["input_ids"], (120,), inputs["attention_mask"])
    view, cut = Grid(3, 3), Grid(3, 6, breaks=True)
    assert pictures_of(inputs, layout, (120,), model.config) == [[(view, cut)], [(view, LONE), (view, LONE)]]
    del inputs["batch_num_images"]
    with pytest.raises(UnsupportedModelError, match="is not known for these inputs"):
        pictures_of(inputs, layout, (120,), model.config)
