"""A question about an image seen before gives the same logits without its vision encoder and shallow layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.errors import InputError
from planner.runtime import ImageCache, attach
from planner.runtime.count import FlopCounter
from planner.schedule import Schedule, Stage
from tests import tiny
from tests.float64 import float64_throughout
from tests.schedules import LAYERS, SCHEDULES
from tests.tiny.configs import IMAGE, VIDEO, VISION_END, VISION_START

#: Outside the runtime's contract.
REFUSED = ("mllama", "llama4")
#: Families whose processors give patch grids.
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v")
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
        first, second = tiny.inputs(family, **options), tiny.inputs(family, **options, text=5)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_a_batch_are_known_singly(family: str) -> None:
    """Two samples of two (or three) images each, padded to common shapes; then the second sample's alone."""
    model, cache = tiny.model(family, layers=LAYERS), ImageCache()
    batch = {"batch": 2, "images": 2, "ragged": True, "left_pad": 1}
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        logits(model, tiny.inputs(family, **batch))
        held = len(cache)
        single = tiny.inputs(family, **batch, only=1)
        found = logits(model, single)
    same_number = family in (*GRIDS, "llava_next", "llava_onevision", "mistral3")
    assert held == len(cache) == (4 if same_number else 5)
    assert (cache.hits, cache.misses) == (1, 1)
    with attach(model, SCHEDULES["visipruner"]):
        assert (found - logits(model, single)).abs().max() < 1e-10


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3", "mistral3", "qwen2_5_vl"])
def test_a_batch_with_one_unknown_image_is_computed_as_a_whole(family: str) -> None:
    model, cache = tiny.model(family, layers=LAYERS), ImageCache()
    both = tiny.inputs(family, batch=2, left_pad=2)
    with attach(model, SCHEDULES["visipruner"]):
        expected = logits(model, both)
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        logits(model, tiny.inputs(family, batch=2, left_pad=2, only=0))
        found = logits(model, both)
        assert (cache.hits, cache.misses, len(cache)) == (0, 2, 2)
        again = logits(model, both)
        assert cache.hits == 1
    assert (found - expected).abs().max() < 1e-10
    assert (again - expected).abs().max() < 1e-10


def test_padding_an_image_does_not_make_it_another() -> None:
    """Blank images beside it, and what a mask of pixels says of it, in a family that has both."""
    model, cache = tiny.model("idefics3", layers=LAYERS), ImageCache()
    inputs = tiny.inputs("idefics3")
    mask = torch.ones(1, 1, 32, 32, dtype=torch.long)
    mask[..., 20:] = 0
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        logits(model, {**inputs, "pixel_attention_mask": mask})
        padded = {
            "pixel_values": torch.nn.functional.pad(inputs["pixel_values"], (0,) * 7 + (2,)),
            "pixel_attention_mask": torch.nn.functional.pad(mask, (0,) * 5 + (2,)),
        }
        logits(model, {**inputs, **padded})
        assert (cache.hits, len(cache)) == (1, 1)
        logits(model, {**inputs, "pixel_attention_mask": torch.ones_like(mask)})
        assert (cache.hits, len(cache)) == (1, 2)


def video_inputs(family: str, text: int, image_too: bool = False) -> dict[str, Any]:
    """Three text tokens, perhaps an image and two more, a video, and some text."""
    words = torch.randint(5, 110, (5 + text,), generator=torch.Generator().manual_seed(text)).tolist()
    generator = torch.Generator().manual_seed(5)
    inputs: dict[str, Any] = {}
    if family == "llava_onevision":
        # Two frames of 3 x 3 patches, pooled to 2 x 2, and a newline.
        inputs["pixel_values_videos"] = torch.randn(1, 2, 3, 24, 24, generator=generator, dtype=torch.float64)
        video = [VIDEO] * 9
    else:
        # Two pairs of frames of 4 x 4 patches, merged 2 x 2.
        inputs["pixel_values_videos"] = torch.randn(32, 96, generator=generator, dtype=torch.float64)
        inputs["video_grid_thw"] = torch.tensor([[2, 4, 4]])
        video = [VISION_START, *[VIDEO] * 8, VISION_END]
        if family == "qwen3_vl":  # every frame on its own
            video = [VISION_START, *[VIDEO] * 4, VISION_END, 50, VISION_START, *[VIDEO] * 4, VISION_END]
    image: list[int] = []
    if image_too:
        picture = tiny.inputs(family)
        inputs |= {name: picture[name] for name in ("pixel_values", "image_grid_thw", "image_sizes") if name in picture}
        image = [token for token in picture["input_ids"][0].tolist() if token > 110] + words[3:5]
    ids = torch.tensor([[*words[:3], *image, *video, *words[5:]]])
    if family in GRIDS:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}


@pytest.mark.parametrize("image_too", [False, True])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_videos_are_cached_like_images(family: str, image_too: bool) -> None:
    model, cache = tiny.model(family, layers=LAYERS), ImageCache()
    for schedule in (SCHEDULES["visipruner"], SCHEDULES["visipruner-hidden"]):
        first, second = (video_inputs(family, text, image_too) for text in (6, 9))
        with attach(model, schedule):
            expected = logits(model, second)
        cache.clear()
        with attach(model, schedule, image_cache=cache):
            logits(model, first)
            hits = cache.hits
            found = logits(model, second)
        assert cache.hits == hits + 1
        assert len(cache) == 1 + image_too
        assert (found - expected).abs().max() < 1e-10


def test_features_added_after_the_shallow_layers_need_the_encoder() -> None:
    """Qwen3-VL adds vision features after its first layers: a shorter shallow stage has no image stream."""
    model, cache = tiny.model("qwen3_vl", layers=LAYERS), ImageCache()
    alone = Stage(first=0, last=1, visual_attention="self", text_to_visual="none", cache_visual="none")
    schedule = Schedule(stages=(alone, Stage(first=1, last=LAYERS)))
    inputs = tiny.inputs("qwen3_vl")
    with attach(model, schedule):
        expected = logits(model, inputs)
    with attach(model, schedule, image_cache=cache) as handle:
        assert all(torch.equal(logits(model, inputs), expected) for _ in range(2))
        assert len(cache) == 0
        with pytest.raises(InputError, match="no image stream"):
            handle.encode_image(**inputs)


def test_what_changes_the_encoder_changes_the_key() -> None:
    """The same pixels under another option of the forward, or with another projector, are another image."""
    cache, inputs = ImageCache(), tiny.inputs("llava")
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        logits(model, inputs)
        logits(model, {**inputs, "vision_feature_layer": -1})
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(1.5)
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        logits(model, inputs)
    assert (cache.hits, cache.misses, len(cache)) == (0, 3, 3)


def test_a_cache_that_a_plan_cannot_use_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A selection before the decoder leaves nothing to keep; what it computes is what it computes without a cache."""
    model, cache, inputs = tiny.model("llava", layers=LAYERS), ImageCache(), tiny.inputs("llava")
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        pass
    assert not caplog.records
    with attach(model, SCHEDULES["prellm"]):
        expected = logits(model, inputs)
    with attach(model, SCHEDULES["prellm"], image_cache=cache):
        found = logits(model, inputs)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["the image cache stays empty"]
    assert len(cache) == 0 and torch.equal(found, expected)


def test_a_cache_holds_something() -> None:
    with pytest.raises(InputError, match="holds nothing"):
        ImageCache(max_bytes=0)


class Packed(torch.Tensor):
    """A weight as torchao holds it: it multiplies and unpacks, and refuses to be looked at."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("flatten", "view", "reshape"):
            raise NotImplementedError(f"attempting to run unimplemented operator: {name}")
        if name == "detach":
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def dequantize(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor).detach().clone()


def test_quantised_weights_are_unpacked_to_tell_models_apart() -> None:
    inputs, options = tiny.inputs("llava"), {"max_new_tokens": 2, "do_sample": False}
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    for layer in model.model.language_model.layers:
        packed = layer.mlp.up_proj.weight.detach().as_subclass(Packed)
        layer.mlp.up_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    cache = ImageCache()
    with attach(model, SCHEDULES["visipruner"]):
        expected = model.generate(**inputs, **options)
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        assert all(torch.equal(model.generate(**inputs, **options), expected) for _ in range(2))
    assert cache.hits == 1
