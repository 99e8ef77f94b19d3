"""Views and tiles of single families beside transformers' processors, which need torchvision, and their towers beside
a counted forward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from planner.cost.vision import tower_macs
from planner.runtime.count import FlopCounter
from planner.spec import ModelSpec, shipped_model
from planner.spec.config import Config, family
from planner.spec.encoded import Encoded
from planner.spec.images import encode
from planner.spec.towers import radio, sam_and_clip
from tests.integration.test_spec_processors import SIZES, SIZES_IDS


def processor(name: str) -> Any:
    pytest.importorskip("torchvision", reason="its processor needs it")
    return getattr(transformers, name)()


@pytest.fixture(params=SIZES, ids=SIZES_IDS)
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    found: tuple[int, int] = request.param
    return found


def test_molmo2(size: tuple[int, int]) -> None:
    grid, crops = processor("Molmo2ImageProcessor").get_image_grid_and_crops(size[1], size[0])
    found = encode(ModelSpec.from_config("molmo2-8b"), *size)
    assert (found.visual_tokens, len(found.tiles)) == (grid[0] * grid[1] + grid[2] * grid[3], crops)


def test_step3(size: tuple[int, int]) -> None:
    windows = processor("Step3p7ImageProcessor").get_number_of_image_patches(size[1], size[0])
    found = encode(ModelSpec.from_config("step-3.7-flash"), *size)
    assert (found.visual_tokens, len(found.tiles)) == (169 + 81 * windows, 1 + windows)


def test_phi4(size: tuple[int, int]) -> None:
    made = processor("Phi4MultimodalImageProcessor")
    image = torch.zeros(3, size[1], size[0], dtype=torch.uint8)
    out = made(images=[image], return_tensors="pt")
    found = encode(ModelSpec.from_config("phi-4-multimodal"), *size)
    assert found.visual_tokens == int(out["num_img_tokens"][0])
    assert len(found.tiles) == out["image_pixel_values"].shape[1]


def test_deepseek_ocr(size: tuple[int, int]) -> None:
    """Tiles as of the port of a sibling, which allows more of them."""
    processor("UnlimitedOcrImageProcessor")
    from transformers.models.unlimited_ocr.image_processing_unlimited_ocr import get_optimal_tiled_canvas

    columns, rows = get_optimal_tiled_canvas((size[1], size[0]), (640, 640), 2, 6)
    tiles = rows * columns if max(size) > 640 else 0
    found = encode(ModelSpec.from_config("deepseek-ocr"), *size)
    local = 10 * rows * (10 * columns + 1) if tiles else 0
    assert (len(found.tiles), found.visual_tokens) == (1 + tiles, 16 * 17 + 1 + local)


def test_deepseek_vl2(size: tuple[int, int]) -> None:
    """Its rule is LLaVA-NeXT's, over its own resolutions."""
    from transformers.image_processing_utils import select_best_resolution

    config = shipped_model("deepseek-vl2-tiny")["config"]
    candidates = [(height, width) for width, height in config["candidate_resolutions"]]
    height, width = select_best_resolution((size[1], size[0]), candidates)
    rows, columns = height // 384, width // 384
    found = encode(ModelSpec.from_config("deepseek-vl2-tiny"), *size)
    side = math.ceil(384 // 14 / 2)
    expected = side * (side + 1) + 1 + rows * side * (columns * side + 1)
    assert (found.visual_tokens, len(found.tiles)) == (expected, 1 + rows * columns)


def test_two_towers_in_a_row() -> None:
    """DeepSeek-OCR's towers are those of a model that transformers has."""
    if not hasattr(transformers, "UnlimitedOcrVisionModel"):
        pytest.skip("this release of transformers has no such towers")
    first = {
        "hidden_size": 16, "output_channels": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 4, "window_size": 6, "global_attn_indexes": [1], "mlp_dim": 24, "downsample_channels": [14, 18],
    }  # fmt: skip
    second = {
        "hidden_size": 18, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    config = transformers.UnlimitedOcrVisionConfig(sam_config=first, encoder_config=second)
    model = transformers.UnlimitedOcrVisionModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad(), FlopCounter() as counter:
        model(torch.zeros(1, 3, 64, 64))
    tower = sam_and_clip(Config(config.to_dict(), "", family("unlimited_ocr_vision", "tower")), "unlimited_ocr_vision")
    assert counter.total == 2 * tower_macs(tower, [Encoded(((16, 16),), 1)])


def test_class_tokens_and_registers() -> None:
    """RADIO, which Nemotron's models see with."""
    if not hasattr(transformers, "RadioModel"):
        pytest.skip("this release of transformers has no RADIO")
    config = transformers.RadioConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=3.0, patch_size=4, image_size=32,
        max_img_size=32, num_cls_tokens=2, num_registers=3,
    )  # fmt: skip
    model = transformers.RadioModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad(), FlopCounter() as counter:
        model(torch.zeros(1, 3, 32, 32))
    tower = radio(Config(config.to_dict(), "", family("radio", "tower")), "radio")
    assert counter.total == 2 * tower_macs(tower, [Encoded(((8, 8),), 64)])
