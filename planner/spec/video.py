"""From a video's size and length to what a vision tower runs on: one image for every grid of patches, so that attention
inside the tower stays within a frame (or within the pair of frames that share their patches)."""

from __future__ import annotations

from dataclasses import replace

from planner.errors import InputError, UnsupportedModelError
from planner.spec.encoded import Encoded
from planner.spec.facts import ImageRule, ModelSpec, VideoRule
from planner.spec.images import LARGEST_SIDE, resized

#: Videos beyond this many frames are a mistake.
MOST_FRAMES = 1 << 20


def sampled_frames(spec: ModelSpec, frames: int, fps: float | None = None) -> int:
    """Frames of a video that the family's processor gives to the model.

    Args:
        frames: of the video.
        fps: its frames a second; None: the frames are those that the model gets.

    Raises:
        UnsupportedModelError: the family takes no video.
        InputError: no frames, too many, or a rate of zero.
    """
    rule = _rule(spec)
    if not 0 < frames <= MOST_FRAMES:
        raise InputError(f"a video of {frames} frames makes no sense", f"A video has 1 to {MOST_FRAMES} frames")
    if fps is None or not rule.fps:
        return frames
    if not fps > 0:
        raise InputError(f"a video of {fps} frames a second makes no sense", "Give a rate above zero")
    taken = max(int(frames / fps * rule.fps), rule.min_frames)
    taken = min(taken, rule.max_frames or frames, frames)
    if rule.kind == "frame":
        taken = taken // rule.temporal * rule.temporal
    return max(taken, 1)


def encode_video(spec: ModelSpec, width: int, height: int, frames: int) -> tuple[Encoded, ...]:
    """A video of a given size, grid after grid.

    Args:
        frames: that the model gets. A number that the tower's step does not divide is filled up with the last frame.

    Raises:
        InputError: sizes that make no sense.
        UnsupportedModelError: the family takes no video.
    """
    rule, images = _rule(spec), spec.images
    if images is None:
        raise UnsupportedModelError(f"'{spec.family}' is a text model and takes no video", "Leave the video out")
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE and 0 < frames <= MOST_FRAMES):
        raise InputError(
            f"a video of {width} x {height} pixels and {frames} frames makes no sense",
            f"Sides are 1 to {LARGEST_SIDE} pixels, and there are 1 to {MOST_FRAMES} frames",
        )
    steps = -(-frames // rule.temporal)
    one = _grid(rule, images, width, height, frames)
    return (*(one,) * (steps - 1), replace(one, visual_tokens=one.visual_tokens + rule.end_tokens))


def _grid(rule: VideoRule, images: ImageRule, width: int, height: int, frames: int) -> Encoded:
    if rule.kind == "tile":
        side = images.side // images.patch
        return Encoded(((side, side),), rule.frame_tokens)
    within = replace(images, min_pixels=rule.min_pixels, max_pixels=rule.max_pixels)
    if rule.kind == "frame":
        return resized(within, width, height, 1, 1)
    # Half a step is rounded to the even one, as Python does.
    counted = round(frames / rule.temporal) * rule.temporal
    return resized(within, width, height, max(frames, rule.temporal), max(counted, rule.temporal))


def _rule(spec: ModelSpec) -> VideoRule:
    if spec.video is None:
        raise UnsupportedModelError(
            f"'{spec.family}' takes no video, or none whose tokens are known here", "Give its frames as images"
        )
    return spec.video
