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


def spec_of(family: str, vision: dict[str, Any], processor: Any = None, **changes: Any) -> ModelSpec:
    decoders = {"qwen2_vl": "qwen2_vl_text", "glm4v": "glm4v_text", "mllama": "mllama_text_model"}
    text = {"model_type": decoders.get(family, "llama")}
    return ModelSpec.from_config(
        {"model_type": family, "image_token_id": 7, "text_config": text, "vision_config": vision, **changes},
        processor,
    )


def processed(name: str, width: int, height: int, nested: bool = False, **options: Any) -> dict[str, Any]:
    """What a processor with its default limits makes of a black image."""
    image = np.zeros((height, width, 3), np.uint8)
    processor = getattr(transformers, name)(**options)
    return dict(processor(images=[[image]] if nested else [image], return_tensors="np"))


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
@pytest.mark.parametrize(("family", "name"), [("qwen2_vl", "Qwen2VLImageProcessor"), ("glm4v", "Glm4vImageProcessor")])
def test_smart_resize(family: str, name: str, width: int, height: int) -> None:
    """At equal limits: those of the classes are not those of the checkpoints."""
    _, rows, columns = processed(name, width, height)["image_grid_thw"][0].tolist()
    limits = dict(getattr(transformers, name).size)
    found = encode(spec_of(family, {}, {"image_processor": {"size": limits}}), width, height)
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


def patches_of(found: dict[str, Any]) -> list[tuple[int, int]]:
    return [(int(rows), int(columns)) for rows, columns in found["target_sizes"]]


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_minicpm(width: int, height: int) -> None:
    """The whole image and its slices, each near one scale."""
    found = processed("MiniCPMV4_6ImageProcessorPil", width, height)
    spec = spec_of("minicpmv4_6", {"patch_size": 14}, text_config={"model_type": "qwen3_5_text"})
    image = encode(spec, width, height)
    assert list(image.tiles) == patches_of(found)
    assert image.visual_tokens == sum(rows * columns for rows, columns in image.tiles) // 16


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_gemma4(width: int, height: int) -> None:
    found = processed("Gemma4ImageProcessorPil", width, height)
    image = encode(spec_of("gemma4", {}, text_config={"model_type": "gemma4_text"}), width, height)
    assert image.visual_tokens == int(np.asarray(found["num_soft_tokens_per_image"]).reshape(-1)[0])
    assert image.tiles == ((1, found["pixel_values"].shape[1]),)


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_ovis2(width: int, height: int) -> None:
    found = processed("Ovis2ImageProcessorPil", width, height, crop_to_patches=True, max_patches=9)
    vision = {"model_type": "ovis2_vision", "image_size": 448, "hidden_stride": 2}
    image = encode(spec_of("ovis2", vision), width, height)
    limited = found["pixel_values"].shape[0]
    sizes = {"image_size": 384, "patch_size": 14}
    same_tile = encode(spec_of("ovis2", {**vision, **sizes}), width, height)
    assert len(same_tile.tiles) == limited
    assert image.visual_tokens == 256 * len(image.tiles)


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_idefics2(width: int, height: int) -> None:
    pixels = processed("Idefics2ImageProcessorPil", width, height, nested=True)["pixel_values"]
    image = encode(spec_of("idefics2", {"patch_size": 14}), width, height)
    assert image.tiles == ((pixels.shape[-2] // 14, pixels.shape[-1] // 14),)
    assert image.visual_tokens == 64


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
@pytest.mark.parametrize(
    ("family", "name", "merge"),
    [("paddleocr_vl", "PaddleOCRVLImageProcessorPil", 2), ("video_llama_3", "VideoLlama3ImageProcessorPil", 1)],
)
def test_single_frames_at_their_own_size(family: str, name: str, merge: int, width: int, height: int) -> None:
    _, rows, columns = processed(name, width, height)["image_grid_thw"][0].tolist()
    limits = dict(getattr(transformers, name).size)
    image = encode(spec_of(family, {"patch_size": 14}, {"image_processor": {"size": limits}}), width, height)
    assert image.tiles == ((rows, columns),)
    assert image.visual_tokens == rows * columns // merge**2


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_kimi(width: int, height: int) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.kimi_k25.image_processing_kimi_k25 import navit_resize

    _, (tall, wide) = navit_resize(height, width, 14, 2, 16384, 512)
    image = encode(spec_of("kimi_k25", {}), width, height)
    assert image.tiles == ((tall // 14, wide // 14),)


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_hunyuan(width: int, height: int) -> None:
    """A break behind every row, and a token at either end."""
    _, rows, columns = processed("HunYuanVLImageProcessorPil", width, height)["image_grid_thw"][0].tolist()
    image = encode(spec_of("hunyuan_vl", {}, text_config={"model_type": "hunyuan_vl_text"}), width, height)
    assert image.tiles == ((rows, columns),)
    assert image.visual_tokens == rows // 2 * (columns // 2 + 1) + 2 == sum(grid.tokens for grid in image.grids)


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_deepseek_ocr2(width: int, height: int) -> None:
    found = processed("DeepseekOcr2ImageProcessorPil", width, height)
    image = encode(spec_of("deepseek_ocr2", {}, text_config={"model_type": "deepseek_ocr2_text"}), width, height)
    tiles = [pixels.shape[-1] // 16 for pixels in (*found.get("pixel_values_local", ()), *found["pixel_values"])]
    assert image.tiles == tuple((side, side) for side in tiles)
    assert image.visual_tokens == sum((side // 4) ** 2 for side in tiles) + 1


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_fuyu(width: int, height: int) -> None:
    """What is filled up to the box is cut again to whole patches of what is seen."""
    found = processed("FuyuImageProcessorPil", width, height)
    rows, columns = (
        -(-int(np.asarray(found[f"image_unpadded_{name}"]).reshape(-1)[0]) // 30) for name in ("heights", "widths")
    )
    spec = ModelSpec.from_config({"model_type": "fuyu", "text_config": {"model_type": "persimmon"}})
    image = encode(spec, width, height)
    assert image.tiles == ((rows, columns),)
    assert image.visual_tokens == rows * columns


@pytest.mark.parametrize(("width", "height"), SIZES, ids=SIZES_IDS)
def test_granite4_vision(width: int, height: int) -> None:
    pinpoints = [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]
    pixels = processed(
        "LlavaNextImageProcessorPil", width, height, size={"shortest_edge": 384}, crop_size=384,
        image_grid_pinpoints=pinpoints,
    )["pixel_values"]  # fmt: skip
    seen = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints), patch_size=16, downsample_rate="4/8",
        num_additional_image_tokens=0,
    )  # fmt: skip
    seen._get_unpadded_features = lambda *sizes: transformers.Granite4VisionProcessor._get_unpadded_features(
        seen, *sizes
    )
    vision = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 16, "hidden_size": 768}
    spec = spec_of(
        "granite4_vision", vision, image_grid_pinpoints=pinpoints, downsample_rate="4/8",
        text_config={"model_type": "granite4_vision_text"},
    )  # fmt: skip
    image = encode(spec, width, height)
    assert len(image.tiles) == pixels.shape[1]
    assert image.visual_tokens == transformers.Granite4VisionProcessor._get_number_of_features(
        seen, height, width, 384, 384
    )
