"""Images whose tokens see the text before them: their streams serve questions behind the same text, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from planner.errors import InputError, PlanMismatchError
from planner.runtime import ImageCache, ImageStream, attach
from tests import tiny
from tests.float64 import float64_throughout
from tests.integration.test_runtime_image_cache import FAMILIES, logits
from tests.integration.test_runtime_image_stream import encoded, encoder_calls
from tests.schedules import LAYERS, SCHEDULES

#: Their text sees what comes after it.
BIDIRECTIONAL = ("paligemma", "paligemma2")


def reworded(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompt but for its first token."""
    ids = inputs["input_ids"].clone()
    first = inputs["attention_mask"][0].argmax()
    ids[0, first] = ids[0, first] % 100 + 7
    return {**inputs, "input_ids": ids}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_question_behind_the_same_text(family: str) -> None:
    """The encoder does not run again; behind another text it does. Two images, and batches padded in several ways."""
    model = tiny.model(family, layers=LAYERS)
    for name, options in (
        ("prefix", {"images": 2}),
        ("prefix-read", {"batch": 2, "ragged": True, "left_pad": 1}),
        ("prefix-mixed", {}),
    ):
        first, second = tiny.inputs(family, **options), tiny.inputs(family, **options, text=5)
        with attach(model, SCHEDULES[name]):
            expected = [logits(model, question) for question in (second, reworded(second))]
        cache = ImageCache()
        with attach(model, SCHEDULES[name], image_cache=cache):
            logits(model, first)
            with encoder_calls(model) as calls:
                found = [logits(model, second)]
            served = not calls
            with encoder_calls(model) as calls:
                found.append(logits(model, reworded(second)))
            assert calls
        assert served == (family not in BIDIRECTIONAL)
        assert cache.hits == served
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() < 1e-10, name


def test_an_image_is_known_behind_its_own_predecessors() -> None:
    """Text between two images has seen the first: behind another one the second is another image."""
    model, cache = tiny.model("llava", layers=LAYERS), ImageCache()
    pair, other = tiny.inputs("llava", images=2), tiny.inputs("llava", images=2, seed=1)
    pixels = pair["pixel_values"]
    with attach(model, SCHEDULES["prefix-read"], image_cache=cache):
        logits(model, pair)
        swapped = {**pair, "pixel_values": torch.stack([other["pixel_values"][0], pixels[1]])}
        found = logits(model, swapped)
        assert (cache.hits, len(cache)) == (0, 4)
        # The first image of a pair is what it would be without the second.
        alone = tiny.inputs("llava")
        assert torch.equal(alone["pixel_values"], pixels[:1])
        logits(model, alone)
        assert (cache.hits, len(cache)) == (1, 4)
    with attach(model, SCHEDULES["prefix-read"]):
        assert (found - logits(model, swapped)).abs().max() < 1e-10


def test_positions_count_from_the_text() -> None:
    """The whole prompt may move; a gap between text and image makes other rows."""
    model, inputs, cache = tiny.model("llava", layers=LAYERS), tiny.inputs("llava"), ImageCache()
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    apart = torch.where(positions < 3, positions, positions + 20)
    with attach(model, SCHEDULES["prefix"]):
        expected = logits(model, {**inputs, "position_ids": apart})
        assert (expected - logits(model, inputs)).abs().max() > 1e-3
    with attach(model, SCHEDULES["prefix"], image_cache=cache):
        logits(model, inputs)
        logits(model, {**inputs, "position_ids": positions + 9})
        assert (cache.hits, len(cache)) == (1, 1)
        assert (logits(model, {**inputs, "position_ids": apart}) - expected).abs().max() < 1e-10
        assert (cache.hits, len(cache)) == (1, 2)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl", "mistral3"])
def test_generating_with_a_saved_stream(family: str, tmp_path: Path) -> None:
    """Beams, a padded batch; then the same without pixels."""
    model = tiny.model(family, layers=LAYERS)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    batch: dict[str, Any] = {"batch": 2, "images": 2, "ragged": True, "left_pad": 1}
    question = tiny.inputs(family, **batch, text=5)
    encoded(model, tiny.inputs(family, **batch), "prefix").save(tmp_path / "streams")
    stream = ImageStream.load(tmp_path / "streams")
    with torch.no_grad(), float64_throughout():
        with attach(model, SCHEDULES["prefix"]):
            expected = model.generate(**question, **options)
        with attach(model, SCHEDULES["prefix"], image_stream=stream), encoder_calls(model) as calls:
            assert torch.equal(model.generate(**question, **options), expected)
            bare = {name: value for name, value in question.items() if name != "pixel_values"}
            assert torch.equal(model.generate(**bare, **options), expected)
        assert not calls


def test_another_text_is_refused() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    stream = encoded(model, inputs, "prefix")
    bare = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with attach(model, SCHEDULES["prefix"], image_stream=stream):
        logits(model, inputs)
        for prompt in (inputs, bare):
            with pytest.raises(
                InputError, match="image 1 of 1 in the prompt is in the image stream behind another text"
            ):
                logits(model, reworded(prompt))
        with pytest.raises(InputError, match="not in the image stream, which holds 1"):
            logits(model, {**inputs, "pixel_values": inputs["pixel_values"] + 1})


def test_another_rule_is_refused() -> None:
    """Under one that sees no text, and where text between images sees these or not, rows are others."""
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    stream = encoded(model, inputs, "prefix")
    for name in ("visipruner-hidden", "prefix-read"):
        with pytest.raises(PlanMismatchError, match=r"states 3; 0-2 image sees prefix, text sees none\), this one has"):
            attach(model, SCHEDULES[name], image_stream=stream)
    for name in ("visipruner-hidden", "prefix-read", "prefix-probe"):
        assert len(encoded(model, inputs, name)) == 1


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_text_that_sees_the_question_has_no_stream(family: str) -> None:
    """With nothing before the image there is nothing to see."""
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family)
    with pytest.raises(InputError, match="Put the image first"):
        encoded(model, inputs, "prefix")
    first, second = tiny.inputs(family, system=0), tiny.inputs(family, system=0, text=5)
    stream = encoded(model, first, "prefix")
    with attach(model, SCHEDULES["prefix"]):
        expected = logits(model, second)
    with attach(model, SCHEDULES["prefix"], image_stream=stream):
        assert (logits(model, second) - expected).abs().max() < 1e-10


def with_a_sound(seed: int) -> dict[str, Any]:
    """Three tokens of a sound before the picture."""
    inputs = tiny.inputs("qwen2_5_omni_thinker")
    generator = torch.Generator().manual_seed(seed)
    ids, kinds = inputs["input_ids"], inputs.get("mm_token_type_ids")
    found = {**inputs, "input_ids": torch.cat([ids[:, :2], torch.full((1, 3), 119), ids[:, 2:]], dim=1)}
    found["attention_mask"] = torch.ones_like(found["input_ids"])
    if kinds is not None:
        found["mm_token_type_ids"] = torch.cat([kinds[:, :2], torch.zeros(1, 3).to(kinds), kinds[:, 2:]], dim=1)
    mels = torch.randn(1, 128, 12, generator=generator, dtype=torch.float64)
    return {**found, "input_features": mels, "feature_attention_mask": torch.ones(1, 12, dtype=torch.long)}


@pytest.mark.skipif(not tiny.transformers_has("qwen2_5_omni_thinker"), reason="this release does not have the model")
def test_an_image_behind_another_sound_is_another() -> None:
    """Sounds have the same tokens, whatever is heard."""
    model = tiny.model("qwen2_5_omni_thinker", layers=LAYERS)
    first, second = with_a_sound(1), with_a_sound(2)
    with attach(model, SCHEDULES["prefix"]):
        expected = logits(model, second)
    with attach(model, SCHEDULES["prefix"], image_cache=ImageCache()) as handle:
        assert (logits(model, first) - expected).abs().max() > 1e-2
        assert torch.equal(logits(model, second), expected)
        with pytest.raises(InputError, match="no image stream tells sounds apart"):
            handle.encode_image(**first)
    cache = ImageCache()
    with attach(model, SCHEDULES["visipruner-self"], image_cache=cache):
        logits(model, first)
    assert len(cache) == 1  # a picture that sees itself alone
