"""What decides how many tokens an image or a video becomes: the checkpoint's processor files, limits, marks, frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.cost.vision import vision_flops
from planner.errors import InputError, UnsupportedModelError
from planner.report.targets import Target, asked_workload, read_target
from planner.spec import ModelSpec
from planner.spec.images import encode, mark_tokens
from planner.spec.processor import limited
from planner.spec.video import encode_video, sampled_frames


def spec_of(family: str, processor: dict[str, Any] | None = None, **blocks: Any) -> ModelSpec:
    config = {"model_type": family, "image_token_id": 7, "text_config": {}, "vision_config": {}, **blocks}
    return ModelSpec.from_config(config, processor)


QWEN = {"model_type": "qwen2_5_vl", "text_config": {}, "vision_config": {}}
PIXTRAL = {"model_type": "pixtral", "image_size": 1024, "patch_size": 16}


@pytest.mark.parametrize(
    ("family", "size", "tokens"),
    [
        ("qwen2_5_vl", (1920, 1080), 2691),  # (1920/28, 1080/28) rounded: 69 x 39
        ("qwen2_vl", (1920, 1080), 2691),
        ("qwen3_vl", (1920, 1080), 2040),  # 60 x 34 of 32 pixels
        ("glm4v", (2048, 2048), 5329),  # 73 x 73; two frames of 2044 x 2044 fit 9,633,792 pixels
        ("glm4v", (4000, 4000), 6084),  # 78 x 78: sqrt(9,633,792 / 2) / 28 = 78.4
    ],
)
def test_limits_are_those_of_the_checkpoints(family: str, size: tuple[int, int], tokens: int) -> None:
    assert encode(spec_of(family), *size).visual_tokens == tokens


def test_a_pixtral_tower_behind_llava_takes_images_at_their_size() -> None:
    spec = spec_of("llava", text_config={"model_type": "mistral"}, vision_config=PIXTRAL)
    found = encode(spec, 640, 480)
    assert (found.tiles, found.visual_tokens) == (((30, 40),), 1200)
    assert mark_tokens(spec, found) == 30, "a break behind every row, and the end behind the last"


@pytest.mark.parametrize(
    "files",
    [
        {"preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 1003520}},
        {"preprocessor_config.json": {"size": {"shortest_edge": 3136, "longest_edge": 1003520}}},
        {"processor_config.json": {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 1003520}}}},
    ],
)
def test_files_beside_the_configuration(tmp_path: Path, files: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    spec = ModelSpec.from_config(tmp_path)
    # sqrt(1920 * 1080 / 1003520) = 1.4375: 1335.6 x 751.3 pixels, down to 47 x 26 times 28.
    assert encode(spec, 1920, 1080).visual_tokens == 47 * 26
    assert spec.digest == ModelSpec.from_config(QWEN).digest, "a plan is bound to the model, not to its processor"


def test_tiles_edges_and_resolutions_of_a_processor() -> None:
    tiles = {"image_processor": {"max_patches": 4}}
    assert len(encode(spec_of("internvl", tiles), 1920, 1080).tiles) == 2 + 1
    uncut = {"image_processor": {"do_image_splitting": False}}
    assert len(encode(spec_of("idefics3", uncut), 1920, 1080).tiles) == 1
    llava = {"text_config": {"model_type": "llama"}, "vision_config": {"image_size": 336, "patch_size": 14}}
    pinpoints = {"image_processor": {"image_grid_pinpoints": [[336, 672]]}}
    assert len(encode(spec_of("llava_next", pinpoints, **llava), 400, 900).tiles) == 3
    edge = {"image_processor": {"size": {"longest_edge": 320}}}
    pixtral = spec_of("llava", edge, text_config={"model_type": "mistral"}, vision_config=PIXTRAL)
    assert encode(pixtral, 640, 480).visual_tokens == 300


def test_a_broken_processor_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"preprocessor_config\.json holds list"):
        ModelSpec.from_config(tmp_path)


def test_another_limit_in_pixels(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    target = read_target(str(tmp_path), max_pixels=1003520)
    assert encode(target.spec, 1920, 1080).visual_tokens == 47 * 26
    assert read_target(str(tmp_path), max_pixels=100 * 784).prompt["visual_tokens"] <= 100
    with pytest.raises(InputError, match="no limit in pixels"):
        read_target("llava-1.5-7b", max_pixels=1000)
    assert target.spec.images is not None
    with pytest.raises(InputError, match="enlarges images to 3136"):
        limited(target.spec.images, 100)


@pytest.mark.parametrize(
    ("family", "size", "marks"),
    [
        ("qwen2_vl", (640, 480), 2),
        ("internvl", (1920, 1080), 2),
        ("smolvlm", (100, 100), 2 * 16 + 4 + 3),  # enlarged: 4 x 4 tiles of two marks, a newline a row
        ("llama4", (672, 336), 3 + 2),  # two tiles
        ("aya_vision", (728, 364), 3 + 2),
    ],
)
def test_marks_around_an_image(family: str, size: tuple[int, int], marks: int) -> None:
    vision = {"image_size": 364, "patch_size": 14} if family in ("smolvlm", "aya_vision") else {"image_size": 336}
    spec = spec_of(family, vision_config=vision if family in ("smolvlm", "aya_vision", "llama4") else {})
    assert mark_tokens(spec, encode(spec, *size)) == marks


def test_marks_are_text_of_the_workload() -> None:
    spec = spec_of("qwen2_vl")
    one = asked_workload(Target("toy", spec), ((280, 280),), {"text_tokens": 20, "system_tokens": 5})
    assert (one.system_tokens, one.visual_tokens, one.text_tokens, one.between_tokens) == (6, 100, 21, 0)
    two = asked_workload(Target("toy", spec), ((280, 280),) * 2, {"text_tokens": 20, "system_tokens": 5})
    assert (two.system_tokens, two.visual_tokens, two.text_tokens, two.between_tokens) == (6, 200, 23, 2)
    assert (one.mark_tokens, two.mark_tokens) == (2, 4)


def test_several_pictures_of_a_request_are_not_cut_where_one_alone_is() -> None:
    """OneVision: 27 by 27 patches of each, and a break; alone there are tiles too."""
    siglip = {"image_size": 384, "patch_size": 14}
    spec = spec_of("llava_onevision", vision_config=siglip)
    alone = asked_workload(Target("toy", spec), ((640, 480),), {})
    both = asked_workload(Target("toy", spec), ((640, 480), (480, 640)), {})
    assert alone.visual_tokens == encode(spec, 640, 480).visual_tokens > 730
    assert both.visual_tokens == 2 * (27 * 27 + 1)
    one = vision_flops(spec, ((384, 384),) * 2, 0, 1, False)
    assert vision_flops(spec, both.images, 0, 1, False) == one
    other = spec_of("llava_next", vision_config={"image_size": 336, "patch_size": 14})
    assert asked_workload(Target("toy", other), ((640, 480),) * 2, {}).visual_tokens == 2 * 2340


def test_a_video_by_hand() -> None:
    """Pairs of frames share their patches; 280 x 560 pixels are within the limits of a frame."""
    grids = encode_video(spec_of("qwen2_vl"), 560, 280, 7)
    assert [(grid.tiles, grid.visual_tokens) for grid in grids] == [(((20, 40),), 200)] * 4


def test_frames_share_the_limit_of_a_volume() -> None:
    transformers = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    for width, height, frames in [(1280, 720, 8), (1280, 720, 120), (97, 801, 31), (20, 40, 4), (1920, 1080, 767)]:
        high, wide = transformers.smart_resize(frames, height, width, 2, 32, 4096, 25_165_824)
        grids = encode_video(spec_of("qwen3_vl"), width, height, frames)
        assert len(grids) == -(-frames // 2)
        assert grids[0].tiles == ((high // 16, wide // 16),)


def test_pooled_frames_of_onevision_and_tiles_of_internvl() -> None:
    siglip = {"image_size": 384, "patch_size": 14}
    frames = encode_video(spec_of("llava_onevision", vision_config=siglip), 1280, 720, 8)
    assert sum(frame.visual_tokens for frame in frames) == 8 * 196 + 1
    assert {frame.tiles for frame in frames} == {((27, 27),)}
    assert sum(frame.visual_tokens for frame in encode_video(spec_of("internvl"), 1280, 720, 8)) == 8 * 256


def test_attention_of_the_tower_stays_within_a_frame() -> None:
    spec = spec_of("qwen2_vl")
    one = vision_flops(spec, (), 0, 1, False, videos=((560, 280, 2),))
    assert vision_flops(spec, (), 0, 1, False, videos=((560, 280, 8),)) == tuple(4 * part for part in one)
    still = vision_flops(spec, ((560, 280),), 0, 1, False)
    assert one == still, "a pair of frames costs a still image, which is repeated"


def test_frames_that_a_processor_takes() -> None:
    spec = spec_of("qwen2_vl")
    assert sampled_frames(spec, 300) == 300
    assert sampled_frames(spec, 300, 30.0) == 20  # ten seconds, two a second
    assert sampled_frames(spec, 30, 30.0) == 4  # at least
    assert sampled_frames(spec, 60 * 3600, 60.0) == 768  # at most
    slow = spec_of("qwen2_vl", {"video_processor": {"fps": 1}})
    assert sampled_frames(slow, 300, 30.0) == 10
    assert sampled_frames(spec_of("internvl"), 300, 30.0) == 300, "no rate of its own"


@pytest.mark.parametrize(("frames", "fps"), [(0, None), (-1, None), (1 << 21, None), (8, 0.0), (8, -2.0)])
def test_videos_that_make_no_sense(frames: int, fps: float | None) -> None:
    with pytest.raises(InputError, match="makes no sense"):
        sampled_frames(spec_of("qwen2_vl"), frames, fps)


def test_families_without_video_say_so() -> None:
    with pytest.raises(UnsupportedModelError, match="'gemma3' takes no video"):
        encode_video(spec_of("gemma3"), 640, 480, 8)
    with pytest.raises(InputError, match="makes no sense"):
        encode_video(spec_of("qwen2_vl"), 0, 480, 8)
    blind = replace(spec_of("qwen2_vl"), images=None)
    with pytest.raises(UnsupportedModelError, match="text model"):
        encode_video(blind, 640, 480, 8)


def test_a_video_and_an_image_in_one_request() -> None:
    spec = spec_of("qwen3_vl")
    found = asked_workload(Target("toy", spec), ((320, 320),), {}, ((320, 320, 60, 30.0),))
    assert found.videos == ((320, 320, 4),)
    assert found.visual_tokens == 100 + 2 * 100
    assert found.between_tokens == 2 * 2
