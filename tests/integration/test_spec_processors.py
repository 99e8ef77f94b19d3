"""Tiles and visual tokens from image sizes, beside transformers' own image processors where those run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from planner.spec import ModelSpec
from planner.spec.images import encode

#: (width, height)
SIZES = [(640, 480), (480, 640), (1920, 1080), (336, 336), (700, 120), (97, 801), (57, 41), (2048, 1531), (384, 384)]
SIZES_IDS = [f"{width}x{height}" for width, height in SIZES]


def spec_of(family: str, vision: dict[str, Any], **changes: Any) -> ModelSpec:
    decoders = {"qwen2_vl": "qwen2_vl_text", "glm4v": "glm4v_text", "mllama": "mllama_text_model"}
    text = {"model_type": decoders.get(family, "llama")}
    return ModelSpec.from_config(
        {"model_type": family, "image_token_id": 7, "text_config": text, "vision_config": vision, **changes}
    )


def processed(name: str, width: int, height: int, nested: bool = False, **options: Any) -> dict[str, Any]:
    """What a processor with its default limits makes of a black image."""
    image = np.zeros((height, width, 3), np.uint8)
    processor = getattr(transformers, name)(**options)
    return dict(processor(images=[[image]] if nested else [image], return_tensors="np"))


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
@pytest.mark.parametrize(("family", "name"), [("qwen2_vl", "Qwen2VLImageProcessor"), ("glm4v", "Glm4vImageProcessor")])
def test_smart_resize(family: str, name: str, width: int, height: int) -> None:
    _, rows, columns = processed(name, width, height)["image_grid_thw"][0].tolist()
    found = encode(spec_of(family, {}), width, height)
    assert found.tiles == ((rows, columns),)
    assert found.visual_tokens == rows * columns // 4


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_llava_next(width: int, height: int) -> None:
    vision = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    spec = spec_of("llava_next", vision, image_grid_pinpoints=pinpoints)
    pixels = processed(
        "LlavaNextImageProcessor", width, height, size={"shortest_edge": 336}, crop_size=336,
        image_grid_pinpoints=pinpoints,
    )["pixel_values"]  # fmt: skip
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336, patch_size=14), image_grid_pinpoints=pinpoints
    )
    found = encode(spec, width, height)
    assert len(found.tiles) == pixels.shape[1]
    features, _ = transformers.LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),
        [torch.zeros(pixels.shape[1], 576, 1)],
        torch.tensor([[height, width]]),
        "default",
        torch.zeros(1),
    )
    assert found.visual_tokens == len(features[0])


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_llava_onevision(width: int, height: int) -> None:
    """With the limit that shrinks nine tiles' worth of features."""
    vision = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, "vision_use_head": False}
    pinpoints = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    spec = spec_of("llava_onevision", vision)
    pixels = processed("LlavaOnevisionImageProcessor", width, height)["pixel_values"]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=384, patch_size=14), image_grid_pinpoints=pinpoints
    )
    found = encode(spec, width, height)
    assert len(found.tiles) == pixels.shape[1]
    features, _ = transformers.LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=config),
        [torch.zeros(pixels.shape[1], 27 * 27, 1)],
        torch.tensor([[height, width]]),
        torch.zeros(1),
        "anyres_max_9",
    )
    assert found.visual_tokens == len(features[0])


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_internvl(width: int, height: int) -> None:
    vision = {"model_type": "internvl_vision", "image_size": [448, 448], "patch_size": [14, 14]}
    size = {"height": 448, "width": 448}
    tiles = processed("GotOcr2ImageProcessor", width, height, crop_to_patches=True, size=size)["num_patches"][0]
    found = encode(spec_of("internvl", vision), width, height)
    assert len(found.tiles) == tiles
    assert found.visual_tokens == 256 * tiles


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_idefics3_and_smolvlm(family: str, width: int, height: int) -> None:
    name = {"idefics3": "Idefics3ImageProcessor", "smolvlm": "SmolVLMImageProcessor"}[family]
    tiles = processed(name, width, height, nested=True)["pixel_values"].shape[1]
    spec = spec_of(family, {"image_size": 364, "patch_size": 14})
    found = encode(spec, width, height)
    assert len(found.tiles) == tiles
    assert found.visual_tokens == 169 * tiles


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_mistral3(width: int, height: int) -> None:
    vision = {"model_type": "pixtral", "image_size": 1540, "patch_size": 14}
    text = {"model_type": "mistral"}
    spec = ModelSpec.from_config(
        {"model_type": "mistral3", "text_config": text, "vision_config": vision, "spatial_merge_size": 2}
    )
    options = {"size": {"longest_edge": 1540}, "patch_size": {"height": 28, "width": 28}}
    rows, columns = processed("PixtralImageProcessor", width, height, **options)["image_sizes"][0].tolist()
    found = encode(spec, width, height)
    assert found.tiles == ((rows // 14, columns // 14),)
    assert found.visual_tokens == rows * columns // 28**2


def test_mllama_runs_all_its_tiles() -> None:
    """Whatever the image, empty tiles run too, and cross-attention reads them."""
    vision = {"model_type": "mllama_vision_model", "image_size": 560, "patch_size": 14, "max_num_tiles": 4}
    for width, height in SIZES:
        pixels = processed("MllamaImageProcessor", width, height, nested=True)["pixel_values"]
        found = encode(spec_of("mllama", vision), width, height)
        assert len(found.tiles) == pixels.shape[2] == 4
        assert found.visual_tokens == 4 * 1601
