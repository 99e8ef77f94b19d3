"""Pictures as a person sees them: upright, sixteen bits, and none that takes gigabytes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibrate.inputs.samples import Sample
from planner.errors import SampleError


def picture(path: Path) -> Image.Image:
    return Sample((path,), "what?", where="here").pictures()[0]


def two_colours() -> Image.Image:
    """Red on the left, blue on the right: 40 x 20."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    return image


@pytest.mark.parametrize(
    ("orientation", "size", "top_left", "bottom_right"),
    [(1, (40, 20), "r", "b"), (3, (40, 20), "b", "r"), (6, (20, 40), "r", "b"), (8, (20, 40), "b", "r")],
)
def test_a_phone_s_picture_stands_upright(tmp_path, orientation, size, top_left, bottom_right):
    """Orientation 6 is "turn clockwise": what lay on the left comes to the top."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_colours().save(tmp_path / "phone.png", exif=exif)
    for found in (
        picture(tmp_path / "phone.png"),
        Sample((Image.open(tmp_path / "phone.png"),), "what?").pictures()[0],
    ):
        assert found.size == size and found.mode == "RGB"
        colour = {"r": (255, 0, 0), "b": (0, 0, 255)}
        assert found.getpixel((1, 1)) == colour[top_left]
        assert found.getpixel((size[0] - 2, size[1] - 2)) == colour[bottom_right]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_grey_are_scaled(tmp_path, suffix):
    ramp = np.array([[0, 257, 0x8000, 0xFFFF]], np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"x{suffix}")
    assert np.asarray(picture(tmp_path / f"x{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_numbers_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(SampleError, match=r"here: .*mode F.*no known range"):
        picture(tmp_path / "x.tif")


def white_png(side: int) -> bytes:
    """A PNG of one bit per pixel, all white, whose file has some kilobytes."""
    row = b"\0" + b"\xff" * ((side + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_small_file_that_unfolds_to_gigabytes_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(white_png(13_000))
    assert (tmp_path / "bomb.png").stat().st_size < 50_000
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(SampleError, match="more than 89,478,485 pixels"):
        picture(tmp_path / "bomb.png")


def test_a_file_that_is_cut_off_or_no_image_is_refused(tmp_path):
    two_colours().save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for number, damaged in enumerate([content[:40], content[:-30], b"", b"GIF89a", content.replace(b"IDAT", b"IDAX")]):
        path = tmp_path / f"{number}.png"
        path.write_bytes(damaged)
        with pytest.raises(SampleError, match=f"{number}.png is not an image that can be read"):
            picture(path)
