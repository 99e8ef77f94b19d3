"""An image encoded ahead under a plan: its stream, saved and used in another process, refused where it does not fit."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.errors import InputError, PlanMismatchError
from planner.plan import Decision, Plan
from planner.profile import ModelIdentity
from planner.runtime import ImageCache, ImageStream, attach
from planner.schedule import Schedule
from planner.spec import ModelSpec
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation, generate
from tests.integration.test_runtime_image_cache import logits
from tests.schedules import LAYERS, SCHEDULES

NAME = "visipruner"


def plan_for(model: Any, schedule: Schedule) -> Plan:
    spec = ModelSpec.from_config(model.config.to_dict())
    identity = ModelIdentity(
        id="tiny",
        family=spec.family,
        config={},
        config_digest=spec.digest,
        layers=spec.layers,
        hidden_size=spec.hidden_size,
        image_token_id=spec.image_token_id,
    )
    return Plan(model=identity, decision=Decision(policy="visipruner", schedule=schedule)).sealed()


def encoded(model: Any, inputs: dict[str, Any], name: str = NAME) -> ImageStream:
    with float64_throughout():
        return plan_for(model, SCHEDULES[name]).encode_image(model, **inputs)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "idefics3", "gemma3", "mistral3"])
def test_generation_with_a_stream_equals_generation_without(family: str) -> None:
    """Two images, encoded with another question."""
    model = tiny.model(family, layers=LAYERS)
    plan = plan_for(model, SCHEDULES[NAME])
    question = tiny.inputs(family, images=2, text=5)
    stream = encoded(model, tiny.inputs(family, images=2))
    assert len(stream) == 2
    with plan.apply(model):
        expected = generate(model, question, continuation(1))
    with plan.apply(model, image_stream=stream):
        found = generate(model, question, continuation(1))
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert (one - other).abs().max() < 1e-10


@contextmanager
def encoder_calls(model: Any) -> Iterator[list[int]]:
    """How often a vision encoder's first layer runs."""
    vision = model.config.vision_config.__class__
    towers = [m for m in model.modules() if getattr(m, "config", None).__class__ is vision]
    lists = {m for tower in towers for m in tower.modules() if isinstance(m, torch.nn.ModuleList)}
    calls: list[int] = []
    hooks = [layers[0].register_forward_pre_hook(lambda *_: calls.append(1)) for layers in lists]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


#: Greedy, beams, several answers; assisted by the model itself.
GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "answers": {"num_beams": 2, "num_return_sequences": 2},
    "assisted": {"prompt_lookup_num_tokens": 2},
}
GENERATED = ("llava", "qwen2_vl", "qwen3_vl", "internvl", "gemma3", "llava_next", "idefics3", "mistral3", "video_llava")


@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("family", GENERATED)
def test_a_second_question_in_generate_does_not_encode(family: str, way: str) -> None:
    """Of two samples with two or three images each, other sizes in the second; of one sample where that is the rule."""
    model, cache, options = tiny.model(family, layers=LAYERS), ImageCache(), GENERATION[way]
    batch = {"images": 2} if way == "assisted" else {"batch": 2, "images": 2, "ragged": True, "left_pad": 1}
    first, second = tiny.inputs(family, **batch), tiny.inputs(family, **batch, text=5)

    def answer(inputs: dict[str, Any]) -> Any:
        with float64_throughout(), torch.no_grad():
            return model.generate(
                **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
            )

    with attach(model, SCHEDULES[NAME]):
        expected = answer(second)
    with attach(model, SCHEDULES[NAME], image_cache=cache) as handle:
        with encoder_calls(model) as calls:
            answer(first)
        assert calls
        held = len(cache)
        with encoder_calls(model) as calls:
            found = answer(second)
        stream = handle.encode_image(**second)
    assert (cache.hits, calls, len(cache)) == (2, [], held)
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert (one - other).abs().max() < 1e-10
    with attach(model, SCHEDULES[NAME], image_stream=stream), encoder_calls(model) as calls:
        assert torch.equal(answer(second).sequences, expected.sequences)
        assert calls == []
        with pytest.raises(InputError, match="not in the image stream"):
            answer(tiny.inputs(family, **batch, seed=3))


def test_features_in_place_of_pixels() -> None:
    """A cache leaves them as they are; a stream cannot know whether they are of its image."""
    model, inputs, cache = tiny.model("llava", layers=LAYERS), tiny.inputs("llava"), ImageCache()
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this release of transformers takes pixels only")
    stream = encoded(model, inputs)
    with float64_throughout(), torch.no_grad():
        features = {"image": model.model.get_image_features(inputs["pixel_values"], return_dict=True)}
    with attach(model, SCHEDULES[NAME], image_cache=cache):
        expected = logits(model, inputs)
        bare = {name: value for name, value in inputs.items() if name != "pixel_values"}
        assert torch.equal(logits(model, {**bare, "mm_encoder_outputs": dict(features)}), expected)
        assert cache.hits == 0
    with attach(model, SCHEDULES[NAME], image_stream=stream), pytest.raises(InputError, match="features of its images"):
        logits(model, {**bare, "mm_encoder_outputs": dict(features)})


def test_encoding_stops_where_the_stream_ends() -> None:
    """The vision encoder and three shallow layers run, no deeper layer and no head."""
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    handle = attach(model, SCHEDULES["visipruner-hidden"])  # which tries every shallow layer on three random rows
    ran: set[str] = set()
    modules = {f"layer {i}": layer.mlp for i, layer in enumerate(model.model.language_model.layers)}
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
        for name, module in {**modules, "encoder": model.model.vision_tower, "head": model.lm_head}.items()
    ]
    with handle:
        handle.encode_image(**inputs)
    for hook in hooks:
        hook.remove()
    assert ran == {"encoder", "layer 0", "layer 1", "layer 2"}


def test_size_is_stated() -> None:
    """A merge at layer 0 keeps the state entering it, beside the one that enters layer 3: 16 tokens of float64."""
    model = tiny.model("llava", layers=LAYERS)
    size = model.config.text_config.hidden_size * 16 * 8
    assert encoded(model, tiny.inputs("llava")).bytes == 2 * size
    assert encoded(model, tiny.inputs("llava", images=2), "visipruner-hidden").bytes == 2 * size


def test_saved_streams_serve_another_process(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "streams.safetensors"
    script = f"""
import torch
from tests.integration.test_runtime_image_stream import *
encoded(tiny.model("llava", layers=LAYERS), tiny.inputs("llava")).save({str(path)!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    assert [one.name for one in path.parent.iterdir()] == ["streams.safetensors"]  # no temporary file is left
    model, question = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", text=9)
    stream = ImageStream.load(path)
    with attach(model, SCHEDULES[NAME]):
        expected = logits(model, question)
    with attach(model, SCHEDULES[NAME], image_stream=stream):
        assert (logits(model, question) - expected).abs().max() < 1e-10
    cache = ImageCache()
    cache.add(stream)
    with attach(model, SCHEDULES[NAME], image_cache=cache):
        assert (logits(model, question) - expected).abs().max() < 1e-10
    assert (cache.hits, cache.misses, cache.bytes) == (1, 0, stream.bytes)


def test_saving_and_loading_is_identity(tmp_path: Path) -> None:
    model, cache = tiny.model("llava", layers=LAYERS), ImageCache()
    with attach(model, SCHEDULES[NAME], image_cache=cache) as handle, float64_throughout():
        returned = handle.encode_image(**tiny.inputs("llava", images=3))
    stream = cache.stream()
    stream.save(tmp_path / "streams")
    loaded = ImageStream.load(tmp_path / "streams")
    assert list(loaded.images) == list(stream.images) == list(returned.images)
    for key, states in stream.images.items():
        assert all(torch.equal(states[layer], loaded.images[key][layer]) for layer in (0, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """Two bytes an element, in memory and through a file."""
    model, inputs = tiny.model("llava", layers=LAYERS, dtype=dtype), tiny.inputs("llava", dtype=dtype)
    stream = plan_for(model, SCHEDULES[NAME]).encode_image(model, **inputs)
    assert stream.bytes == 2 * 16 * 32 * 2
    stream.save(tmp_path / "streams")
    with torch.no_grad():
        with attach(model, SCHEDULES[NAME]):
            expected = model(**inputs).logits
        with attach(model, SCHEDULES[NAME], image_stream=ImageStream.load(tmp_path / "streams")):
            assert torch.equal(model(**inputs).logits, expected)


def test_pixels_may_stay_behind() -> None:
    """With the stream of just the prompt's images the pixels are not needed; generation goes on as with them."""
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava", images=2)
    stream = encoded(model, inputs)
    with attach(model, SCHEDULES[NAME]):
        expected = logits(model, inputs)
    bare = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with attach(model, SCHEDULES[NAME], image_stream=stream):
        assert (logits(model, bare) - expected).abs().max() < 1e-10
    with (
        attach(model, SCHEDULES[NAME], image_stream=encoded(model, tiny.inputs("llava"))),
        pytest.raises(InputError, match="32 visual tokens and no pixels, the image stream has 16 of 1 images"),
    ):
        logits(model, bare)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl"])
def test_generating_without_pixels(family: str) -> None:
    """Beams repeat every sample, its stream with it."""
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=2, images=2, left_pad=1, ragged=True)
    stream = encoded(model, inputs)
    bare = {name: value for name, value in inputs.items() if name != "pixel_values"}
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    with torch.no_grad(), float64_throughout():
        with attach(model, SCHEDULES[NAME]):
            expected = model.generate(**inputs, **options)
        with attach(model, SCHEDULES[NAME], image_stream=stream):
            assert torch.equal(model.generate(**bare, **options), expected)


def test_another_model_or_plan_is_refused() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    stream = encoded(model, inputs)
    other = tiny.model("llava", layers=LAYERS, seed=1)
    with pytest.raises(PlanMismatchError, match="another model"):
        attach(other, SCHEDULES[NAME], image_stream=stream)
    single = tiny.model("llava", layers=LAYERS, dtype=torch.float32)
    with pytest.raises(PlanMismatchError, match="another model"):
        attach(single, SCHEDULES[NAME], image_stream=stream)
    with pytest.raises(PlanMismatchError, match=r"shallow layers 0-2 \(states 0\+3\), this one has 0-2 \(states 3\)"):
        attach(model, SCHEDULES["visipruner-hidden"], image_stream=stream)
    with attach(model, SCHEDULES[NAME], image_stream=stream):  # every refusal left the model free
        logits(model, inputs)


def test_another_image_is_refused() -> None:
    model = tiny.model("llava", layers=LAYERS)
    stream = encoded(model, tiny.inputs("llava"))
    with attach(model, SCHEDULES[NAME], image_stream=stream):
        with pytest.raises(InputError, match="image 1 of 1 in the prompt is not in the image stream, which holds 1"):
            logits(model, tiny.inputs("llava", seed=4))
        logits(model, tiny.inputs("llava", images=0))  # a prompt without an image needs none


def test_what_has_no_stream_is_refused() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    stream = encoded(model, inputs)
    with pytest.raises(InputError, match="no image stream"):
        plan_for(model, SCHEDULES["fastv"]).encode_image(model, **inputs)
    with pytest.raises(InputError, match="no image stream"):
        attach(model, SCHEDULES["fastv"], image_stream=stream)
    with pytest.raises(InputError, match="holds no image"):
        plan_for(model, SCHEDULES[NAME]).encode_image(model, **tiny.inputs("llava", images=0))
    with pytest.raises(InputError, match="two ways"):
        attach(model, SCHEDULES[NAME], image_stream=stream, image_cache=ImageCache())
    with pytest.raises(InputError, match="holds no image"):
        attach(model, SCHEDULES[NAME], image_stream=ImageCache().stream())


def test_what_is_not_a_stream_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    for name in ("broken", "missing"):
        with pytest.raises(InputError, match="cannot read image streams"):
            ImageStream.load(tmp_path / name)
    save_file({"0/3": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(InputError, match="holds no image streams"):
        ImageStream.load(tmp_path / "weights")
