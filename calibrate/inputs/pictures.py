"""Image files to RGB pictures, as a person sees them: turned upright, sixteen bits scaled to eight, within a size."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


class UnreadableImage(Exception):
    """Why a file is no picture, in a few words."""


def open_picture(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        UnreadableImage: it cannot be decoded, or has more pixels than PIL takes for an attack.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                return as_rgb(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        most = Image.MAX_IMAGE_PIXELS
        raise UnreadableImage(
            f"more than {most:,} pixels; scale it down or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except UnreadableImage:
        raise
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise UnreadableImage(str(error) or type(error).__name__) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB, turned as its EXIF orientation says (as transformers' `load_image` does).

    Raises:
        UnreadableImage: its numbers have no known range.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
        upright = _eight_bits(upright)
    return upright.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits; `convert` alone would make everything above 255 white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise UnreadableImage(f"its numbers (mode {image.mode}) have no known range; convert it to 8 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
