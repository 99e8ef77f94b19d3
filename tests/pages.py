"""Pictures of the pages that `plan report` makes, as committed in ``reports/pages``.

    python -m tests.pages --out reports/pages

Needs Chromium. Pictures have few colours, so that they stay small.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import click
from PIL import Image

from planner.cli import cli
from tests.browser import screenshot

POLICIES = (
    "--policy", "visipruner:filter=8,keep=10,exit=24", "--policy", "fastv:k=2,ratio=0.75",
    "--policy", "prellm:keep=0.25",
)  # fmt: skip
#: Options of `plan report` for each page.
PAGES = {
    "explorer": ("--interactive",),
    "costs": ("llava-1.5-7b", "--batch", "8", "--hardware", "h100-sxm", *POLICIES),
    "sweep": ("llava-1.5-7b", "--sweep", "visipruner:filter=2..12,keep=5/20/60/100,exit=20..30"),
}
COLOURS = 256


class Shot(NamedTuple):
    """A page in a window of a size in pixels."""

    page: str
    face: str
    width: int
    height: int


SHOTS = (
    Shot("explorer", "light", 1200, 2220),
    Shot("explorer", "dark", 1200, 2220),
    Shot("explorer", "phone", 390, 3900),
    Shot("costs", "light", 1200, 2340),
    Shot("costs", "dark", 1200, 2340),
    Shot("costs", "phone", 390, 2900),
    Shot("sweep", "light", 1200, 1400),
)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the pictures.")
def main(out: Path) -> None:
    """Make every page, and a picture of each `Shot`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, options in PAGES.items():
            cli.main(["report", *options, "--format", "html", "-o", f"{folder}/{name}.html"], standalone_mode=False)
        for page, face, width, height in SHOTS:
            picture = out / f"{page}-{face}.png"
            screenshot((Path(folder) / f"{page}.html").as_uri(), picture, width, height, dark=face == "dark")
            Image.open(picture).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
                picture, optimize=True
            )
            click.echo(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
