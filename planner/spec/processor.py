"""What a checkpoint's processor files say of sizes: limits in pixels, tiles, resolutions, frames of a video.

They lie beside ``config.json``: ``preprocessor_config.json``, ``video_preprocessor_config.json``, or both inside
``processor_config.json``. Checkpoints of one family differ in them, and the classes' defaults are often nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.files import is_file, parse_json, read_text
from planner.spec.config import Config
from planner.spec.facts import ImageRule, Marks, VideoRule

#: File beside a configuration -> the block that it is.
FILES = {"preprocessor_config.json": "image_processor", "video_preprocessor_config.json": "video_processor"}


def processor_beside(path: Path) -> dict[str, Any]:
    """The processor files in the folder of a ``config.json``, as blocks ``image_processor`` and ``video_processor``;
    empty where there are none.

    Raises:
        InputError: one is not JSON.
    """
    found: dict[str, Any] = {}
    whole = path.parent / "processor_config.json"
    if path.name == "config.json" and is_file(whole):
        values = _parsed(whole)
        found = {block: values[block] for block in FILES.values() if isinstance(values.get(block), Mapping)}
    for name, block in FILES.items():
        if path.name == "config.json" and block not in found and is_file(path.parent / name):
            found[block] = _parsed(path.parent / name)
    return found


def _parsed(path: Path) -> dict[str, Any]:
    values = parse_json(read_text(path), str(path), InputError, "Restore the checkpoint's file")
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds {type(values).__name__}, not a block of fields", "Restore the checkpoint's file"
        )
    return values


def image_rule(rule: ImageRule, data: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageRule:
    """A reader's rule with what the family's file says of its checkpoints, and then with this checkpoint's processor.

    Args:
        data: the family's file; its ``images`` are fields of `ImageRule`, ``marks`` a block of `Marks`.
        processor: blocks of the processor files.

    Raises:
        InputError: a size is absurd.
    """
    known = dict(data.get("images", {}))
    if "marks" in known:
        known["marks"] = Marks(**known["marks"])
    rule = replace(rule, **known)
    said = Config(processor.get("image_processor", {}), "preprocessor_config.json")
    size = Config(_block(said, "size"), "preprocessor_config.json size")
    if rule.limited:
        patch, merge = said.side("patch_size") if said.has("patch_size") else rule.patch, rule.merge
        merge = said.size("merge_size", default=merge)
        least = said.size("min_pixels", default=size.size("shortest_edge", "min_pixels", default=rule.min_pixels))
        most = said.size("max_pixels", default=size.size("longest_edge", "max_pixels", default=rule.max_pixels))
        return replace(rule, side=patch * merge, patch=patch, merge=merge, min_pixels=least, max_pixels=most)
    return replace(rule, **_said(rule, said, size))


def _said(rule: ImageRule, said: Config, size: Config) -> dict[str, Any]:
    """Fields of a rule that a processor's file decides."""
    if rule.kind in ("shrink", "split", "edges"):
        found = {"longest_edge": size.size("longest_edge", default=rule.longest_edge)}
        if rule.kind == "edges":
            found["shortest_edge"] = size.size("shortest_edge", default=rule.shortest_edge)
        uncut = rule.kind == "split" and said.get("do_image_splitting") is False
        return {**found, "max_tiles": 1} if uncut else found
    if rule.kind == "anyres" and said.get("image_grid_pinpoints"):
        pinpoints = said.get("image_grid_pinpoints")
        return {"resolutions": tuple((int(height), int(width)) for height, width in pinpoints)}
    if rule.kind in ("aspect", "fit", "cover"):
        return {"max_tiles": said.size("max_patches", default=rule.max_tiles)}
    if rule.kind == "navit":
        side = size.size("max_height", default=rule.longest_edge)
        return {
            "max_patches": said.size("in_token_limit", "max_patches", default=rule.max_patches),
            "longest_edge": side,
        }
    if rule.kind == "budget":
        merge = rule.merge**2
        return {"max_patches": merge * said.size("max_soft_tokens", default=rule.max_patches // merge)}
    if rule.kind == "slices":
        scale = said.size("scale_resolution", default=rule.longest_edge)
        return {"max_tiles": said.size("max_slice_nums", default=rule.max_tiles), "longest_edge": scale}
    if rule.kind in ("document", "pages"):
        return {
            "side": said.size("tile_size", default=rule.side),
            "view": size.size("height", default=rule.view),
            "max_tiles": said.size("max_patches", default=rule.max_tiles),
        }
    if rule.kind == "masked":
        return {"max_tiles": said.size("dynamic_hd", default=rule.max_tiles)}
    if rule.kind == "overlapping":
        margin = sum(said.numbers("overlap_margins")) or rule.margin
        return {"max_tiles": said.size("max_crops", default=rule.max_tiles), "margin": margin}
    return _tiles_or_one(rule, said) if rule.kind == "large" else {}


def _tiles_or_one(rule: ImageRule, said: Config) -> dict[str, Any]:
    """LFM2-VL states its limits in tokens."""
    token, side = (rule.patch * rule.merge) ** 2, said.size("tile_size", default=rule.side)
    cut = said.get("do_image_splitting") is not False
    most = said.size("max_image_tokens", default=rule.max_pixels // token)
    return {
        "side": side,
        "tile_tokens": (side // rule.patch // rule.merge) ** 2,
        "min_pixels": token * said.size("min_image_tokens", default=rule.min_pixels // token),
        "max_pixels": token * most,
        "max_tiles": said.size("max_tiles", default=rule.max_tiles) if cut else 1,
        "max_patches": max(most * rule.merge**2, (side // rule.patch) ** 2 if cut else 0),
    }


def video_rule(rule: ImageRule, data: Mapping[str, Any], processor: Mapping[str, Any]) -> VideoRule | None:
    """How a family's videos become tokens, with what this checkpoint's processor says; None where it takes none."""
    if "video" not in data:
        return None
    video = VideoRule(**data["video"])
    said = Config(processor.get("video_processor", {}), "video_preprocessor_config.json")
    size = Config(_block(said, "size"), "video_preprocessor_config.json size")
    rate = said.get("fps")
    if video.kind == "tile":
        tokens = video.frame_tokens or rule.tile_tokens
        return replace(video, frame_tokens=tokens, fps=video.fps if rate is None else float(rate))
    return replace(
        video,
        min_pixels=said.size("min_pixels", default=size.size("shortest_edge", default=video.min_pixels)),
        max_pixels=said.size("max_pixels", default=size.size("longest_edge", default=video.max_pixels)),
        min_frames=said.size("min_frames", default=video.min_frames, least=0),
        max_frames=said.size("max_frames", default=video.max_frames, least=0),
        fps=video.fps if rate is None else float(rate),
    )


def limited(rule: ImageRule, max_pixels: int) -> ImageRule:
    """The rule with another limit on an image's pixels.

    Raises:
        InputError: the family has none, or its least is above that.
    """
    if not rule.limited:
        raise InputError("this family resizes images to sizes of its own and has no limit in pixels", "Leave it out")
    if max_pixels < rule.min_pixels:
        raise InputError(
            f"at most {max_pixels} pixels, and the processor enlarges images to {rule.min_pixels}", "Give more pixels"
        )
    return replace(rule, max_pixels=max_pixels)


def _block(config: Config, name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}
