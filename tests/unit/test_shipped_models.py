"""Configurations as published, many of models with their own code: what they hold, and what pictures become in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.cost.memory import weights_stored
from planner.errors import UnsupportedModelError
from planner.spec import ModelSpec, shipped, shipped_model
from planner.spec.facts import Storage
from planner.spec.images import encode, mark_tokens
from planner.spec.read import facts_of, read_alone
from planner.workload import Workload

#: Shipped model -> billions of parameters, as its model card or the sizes of its weight files state them.
PARAMETERS = {
    "kimi-vl-a3b": 16.4,
    "kimi-k2.5": 1027,
    "minicpm-v-2.6": 8.10,
    "deepseek-vl2-tiny": 3.37,
    "deepseek-ocr": 3.34,
    "molmo2-8b": 8.66,
    "ovis2.5-9b": 9.18,
    "step-3.7-flash": 199,
    "minimax-m3": 427,
    "ernie-4.5-vl-28b-a3b": 29.4,
    "paddleocr-vl": 0.91,
    "qwen3-vl-4b": 4.44,
    "qwen3-vl-30b-a3b": 31.1,
    "gemma-3-12b": 12.2,
}
#: Worked out by hand from the processors' rules: width, height, visual tokens, and text tokens around them.
TOKENS = {
    # 45 x 34 patches, filled up to 46 x 34; beyond 4,096 patches the scale is the root of their share.
    "kimi-vl-a3b": (640, 480, 23 * 18, 4),
    # More than one scale of 448 x 448: two slices side by side and the whole, 64 queries each.
    "minicpm-v-2.6": (640, 480, 3 * 64, 5 + 2 * 2),
    # Two by two tiles of 14 x 14, a break behind each of 28 rows; the whole view's 14 rows; one separator.
    "deepseek-vl2-tiny": (768, 768, 28 * 29 + 14 * 15 + 1, 0),
    # Three by two tiles of 10 x 10, and 16 x 16.
    "deepseek-ocr": (1920, 1280, 20 * 31 + 16 * 17 + 1, 0),
    # Two by two tiles of 448, of which 32 rows of patches stay empty at 896 x 448 in the second row: 1 x 2 tiles.
    "phi-4-multimodal": (896, 448, 16 * 17 + 1 + 16 * 33, 0),
    # Two by two tiles of 27 patches that share 8: 46 patches a side, in squares of two; 14 x 14 of the whole image; a
    # mark behind each row, and two around each view.
    "molmo2-8b": (640, 480, 23 * 23 + 14 * 14, 23 + 14 + 4),
    # 1280 x 960 in steps of 32.
    "ovis2.5-9b": (1280, 960, 40 * 30, 2),
    # Within the view of 728 pixels: one view of 13 x 13.
    "step-3.7-flash": (640, 480, 13 * 13, 2),
}


def config_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = shipped_model(name)["config"]
    return found


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    """Within a hundredth, to the digits that are stated; biases, norms, positions and lone vectors are not counted."""
    spec = ModelSpec.from_config(config_of(name))
    spec = replace(spec, storage=Storage(tied=spec.storage.tied))
    stored = weights_stored(spec, Workload(visual_tokens=1, weight_bits=8))
    assert sum(stored.values()) / 1e9 == pytest.approx(PARAMETERS[name], rel=0.01)


def test_quantised_experts_are_stored_so() -> None:
    """Kimi K2.5's files hold 554.3 GiB: four bits and a sixteen-bit scale for every 32 of them in its experts.

    Attention and shared experts, which are not quantised, are counted as if they were: 2.3 % are missing.
    """
    stored = weights_stored(ModelSpec.from_config("kimi-k2.5"), Workload(visual_tokens=1))
    assert sum(stored.values()) / 2**30 == pytest.approx(554.3, rel=0.03)


@pytest.mark.parametrize("name", TOKENS)
def test_tokens(name: str) -> None:
    width, height, visual, around = TOKENS[name]
    spec = ModelSpec.from_config(config_of(name))
    image = encode(spec, width, height)
    assert (image.visual_tokens, mark_tokens(spec, image)) == (visual, around)


@pytest.mark.parametrize("name", shipped())
def test_recorded_facts_are_enough(name: str) -> None:
    """What a plan stores of a configuration gives the same computation."""
    facts = facts_of(config_of(name))
    assert ModelSpec.from_config(facts).digest == ModelSpec.from_config(config_of(name)).digest


def test_original_and_port_are_one_computation() -> None:
    """Kimi K2.5 as it lies on the hub, and as transformers' class writes it."""
    original = config_of("kimi-k2.5")
    vision = {name.removeprefix("vt_"): value for name, value in original["vision_config"].items()}
    port = {
        "model_type": "kimi_k25",
        "image_token_id": 163605,
        "text_config": {**original["text_config"], "model_type": "deepseek_v3"},
        "vision_config": {**vision, "model_type": "kimi_k25_vision"},
    }
    one, other = ModelSpec.from_config(original), ModelSpec.from_config(port)
    assert (one.decoder.layers, one.vision, one.projector) == (other.decoder.layers, other.vision, other.projector)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("minicpm-v-2.6", {"version": 9.9}, "version of MiniCPM-V '9.9'"),
        ("deepseek-ocr", {"projector_config": {"projector_type": "new"}}, "projector 'new'"),
        ("phi-4-multimodal", {"img_processor": "other"}, "vision tower 'other'"),
    ],
)
def test_unknown_parts_are_refused_by_name(name: str, changes: dict[str, object], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        ModelSpec.from_config({**config_of(name), **changes})


def test_the_text_decoder_alone() -> None:
    """Behind a tower that is not known, and of a model that brings its own code."""
    text = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    unknown = {"model_type": "not_known", "llm_config": text, "vision_config": {"model_type": "neither"}}
    with pytest.raises(UnsupportedModelError, match="'not_known' is not known") as refused:
        ModelSpec.from_config(unknown)
    assert "--decoder-only" in str(refused.value)
    alone = read_alone(unknown)
    assert alone.decoder == ModelSpec.from_config(text).decoder and alone.images is None
    whole = ModelSpec.from_config(config_of("minicpm-v-2.6"))
    found = read_alone(config_of("minicpm-v-2.6"))
    assert found.vision is None and found.decoder.layers == whole.decoder.layers


def test_an_unknown_text_decoder_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="text decoder 'nemotron_h' is not known"):
        read_alone({"model_type": "not_known", "text_config": {"model_type": "nemotron_h"}})
