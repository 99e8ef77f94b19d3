"""A question about an image seen before gives the same logits without its vision encoder and shallow layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from planner.errors import InputError
from planner.runtime import ImageCache, attach
from planner.runtime.count import FlopCounter
from tests import tiny
from tests.float64 import float64_throughout
from tests.schedules import LAYERS, SCHEDULES

#: Refused, or with images under another argument than pixel_values.
REFUSED = ("mllama", "llama4", "video_llava")
FAMILIES = [family for family in tiny.VISION if family not in REFUSED]
#: Nothing read by text; a merge at layer 0; keys and values read in every shallow layer; a probe at the end.
NAMES = ("visipruner-hidden", "visipruner", "visipruner-self", "probe")


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad(), float64_throughout():
        return model(**inputs, logits_to_keep=1).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached(family: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    cache = ImageCache()
    for number, name in enumerate(NAMES):
        options = [{}, {"images": 2}, {"batch": 2, "left_pad": 3}, {"batch": 2, "ragged": True, "left_pad": 1}][number]
        first, second = tiny.inputs(family, **options), tiny.inputs(family, **options, text=11)
        with attach(model, SCHEDULES[name]):
            expected = logits(model, second)
        with attach(model, SCHEDULES[name], image_cache=cache):
            logits(model, first)
            hits = cache.hits
            found = logits(model, second)
        assert cache.hits == hits + 1
        assert (found - expected).abs().max() < 1e-10, name


def test_a_cached_image_saves_the_encoder_and_the_shallow_layers() -> None:
    model, inputs, cache = tiny.model("llava", layers=LAYERS), tiny.inputs("llava"), ImageCache()
    totals = []
    with attach(model, SCHEDULES["visipruner-hidden"], image_cache=cache), torch.no_grad():
        for _ in range(2):
            with FlopCounter() as counter:
                model(**inputs)
            totals.append(counter.total)
        # Saved: the encoder and projector, and in three layers values, output projections and a gated FFN of 16 tokens.
        with FlopCounter() as encoder:
            model.get_image_features(pixel_values=inputs["pixel_values"])
    text = model.config.text_config
    key_value_size = text.num_key_value_heads * text.head_dim
    layer = text.hidden_size * (key_value_size + text.num_attention_heads * text.head_dim + 3 * text.intermediate_size)
    assert totals[0] - totals[1] == encoder.total + 3 * 16 * 2 * layer


def test_images_are_told_apart_and_reused_singly() -> None:
    """Two images cached in one batch serve a question about the second alone."""
    model, cache = tiny.model("llava", layers=LAYERS), ImageCache()
    both = tiny.inputs("llava", batch=2)
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        logits(model, both)
        assert len(cache) == 2
        single = tiny.inputs("llava", batch=2, only=1)
        found = logits(model, single)
        assert cache.hits == 1
        other = tiny.inputs("llava", seed=4)
        logits(model, other)
        assert cache.misses == 2
    with attach(model, SCHEDULES["visipruner"]):
        assert (found - logits(model, single)).abs().max() < 1e-10


def test_another_model_or_plan_never_hits() -> None:
    cache, inputs = ImageCache(), tiny.inputs("llava")
    for model, name in (
        (tiny.model("llava", layers=LAYERS), "visipruner"),
        (tiny.model("llava", layers=LAYERS, seed=1), "visipruner"),
        (tiny.model("llava", layers=LAYERS), "visipruner-hidden"),
    ):
        with attach(model, SCHEDULES[name], image_cache=cache):
            logits(model, inputs)
    assert cache.hits == 0
    assert cache.misses == len(cache) == 3


def test_memory_is_bounded_and_size_stated() -> None:
    model = tiny.model("llava", layers=LAYERS)
    size = model.config.text_config.hidden_size * 16 * 8  # 16 visual tokens in float64, one state
    cache = ImageCache(max_bytes=2 * size)
    with attach(model, SCHEDULES["visipruner-hidden"], image_cache=cache):
        for seed in range(3):
            logits(model, tiny.inputs("llava", seed=seed))
            assert cache.bytes == min(seed + 1, 2) * size
        logits(model, tiny.inputs("llava", seed=2))
        assert cache.hits == 1
        logits(model, tiny.inputs("llava", seed=0))  # the oldest is gone
        assert cache.hits == 1


def test_saved_streams_serve_another_process(tmp_path: Path) -> None:
    model, inputs, cache = tiny.model("llava", layers=LAYERS), tiny.inputs("llava"), ImageCache()
    with attach(model, SCHEDULES["visipruner"], image_cache=cache) as handle:
        with float64_throughout():
            keys = handle.encode_image(**inputs)
        assert all(key in cache for key in keys)
    cache.save(tmp_path / "streams.safetensors")
    loaded = ImageCache()
    assert loaded.load(tmp_path / "streams.safetensors") == len(keys) == 1
    with attach(model, SCHEDULES["visipruner"]):
        expected = logits(model, inputs)
    with attach(model, SCHEDULES["visipruner"], image_cache=loaded):
        found = logits(model, inputs)
    assert loaded.hits == 1
    assert (found - expected).abs().max() < 1e-10


def test_what_is_not_a_stream_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    for name in ("broken", "missing"):
        with pytest.raises(InputError, match="cannot read image streams"):
            ImageCache().load(tmp_path / name)
    with pytest.raises(InputError, match="holds nothing"):
        ImageCache(max_bytes=0)
