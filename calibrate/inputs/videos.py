"""Video files to frames: animated pictures by PIL, films by whatever decoder transformers finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

#: Pictures that may move.
_ANIMATED = frozenset({".gif", ".webp", ".png", ".apng"})
#: transformers' decoders, and the package that each needs.
_DECODERS = ("pyav", "torchcodec", "decord", "opencv", "torchvision")
#: Of an animation that does not say.
_FRAME_MS = 100.0
#: Of longer videos so many frames are read, evenly; processors take fewer.
MOST_FRAMES = 256


class UnreadableVideo(Exception):
    """Why a file is no video, in a few words."""


@dataclass(frozen=True, eq=False)
class Video:
    """Frames ``[t, height, width, 3]``, eight bits each, and how many of these are shown in a second."""

    frames: NDArray[np.uint8]
    fps: float

    def flipped(self) -> Video:
        """Upside down."""
        return Video(np.ascontiguousarray(self.frames[:, ::-1]), self.fps)

    def metadata(self) -> dict[str, Any]:
        """As processors ask for it."""
        count = len(self.frames)
        return {
            "total_num_frames": count,
            "fps": self.fps,
            "duration": count / self.fps,
            "frames_indices": list(range(count)),
            "height": int(self.frames.shape[1]),
            "width": int(self.frames.shape[2]),
        }


def open_video(path: Path) -> Video:
    """The frames of a file, `MOST_FRAMES` of them at most.

    Raises:
        UnreadableVideo: it cannot be decoded, or nothing that decodes films is installed.
    """
    return _animation(path) if path.suffix.lower() in _ANIMATED else _film(path)


def _animation(path: Path) -> Video:
    try:
        with Image.open(path) as opened:
            wanted, frames, shown_ms = set(_even(getattr(opened, "n_frames", 1)).tolist()), [], 0.0
            for number, frame in enumerate(ImageSequence.Iterator(opened)):
                picture = frame.convert("RGB")
                shown_ms += float(frame.info.get("duration") or _FRAME_MS)  # known once the frame is decoded
                if number in wanted:
                    frames.append(np.asarray(picture))
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise UnreadableVideo(str(error) or type(error).__name__) from error
    return Video(np.stack(frames), 1000 * len(frames) / shown_ms)


def _film(path: Path) -> Video:
    from transformers.video_utils import load_video

    for decoder in _DECODERS:
        try:
            frames, metadata = load_video(
                str(path), backend=decoder, sample_indices_fn=lambda metadata, **_: _even(metadata.total_num_frames)
            )
        except ImportError:
            continue
        except Exception as error:
            raise UnreadableVideo(str(error) or type(error).__name__) from error
        share = len(frames) / max(metadata.total_num_frames, 1)
        return Video(np.asarray(frames), share * float(metadata.fps or 1000 / _FRAME_MS))
    raise UnreadableVideo("no package that decodes films is installed; `pip install av` is one")


def _even(total: int) -> NDArray[np.int64]:
    """Numbers of the frames that are read."""
    return np.linspace(0, total - 1, min(total, MOST_FRAMES)).round().astype(np.int64)
