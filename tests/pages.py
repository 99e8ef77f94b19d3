"""Pictures of the pages that `plan report` and `plan calibrate` make, as committed in ``reports/pages``.

    python -m tests.pages --out reports/pages

Needs Chromium. Pictures have few colours, so that they stay small. The tests compare those of `COMPARED`, which depend
on the code alone (`tests/integration/test_pages.py`), where fonts are those that the picture names.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import click
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from planner.cli import cli
from tests.browser import fonts, screenshot
from tests.example_page import example

POLICIES = (
    "--policy", "visipruner:filter=8,keep=10,exit=24", "--policy", "fastv:k=2,ratio=0.75",
    "--policy", "prellm:keep=0.25",
)  # fmt: skip
#: Options of `plan report` for its pages.
REPORTS = {
    "explorer": ("--interactive",),
    "costs": ("llava-1.5-7b", "--batch", "8", "--hardware", "h100-sxm", *POLICIES),
    "sweep": ("llava-1.5-7b", "--sweep", "visipruner:filter=2..12,keep=5/20/60/100,exit=20..30"),
}
#: The report of the bundled model, as it was calibrated.
CALIBRATED = Path(__file__).parents[1] / "reports" / "reference" / "windowed" / "report.html"
COMPARED = (*REPORTS, "example")
COLOURS = 256
#: What a picture says of the fonts that it shows.
FONTS = "fonts"


class Shot(NamedTuple):
    """A page in a window of a size in pixels."""

    page: str
    face: str
    width: int
    height: int

    @property
    def file(self) -> str:
        """Of its picture."""
        return f"{self.page}-{self.face}.png"


SHOTS = (
    Shot("explorer", "light", 1200, 2220),
    Shot("explorer", "dark", 1200, 2220),
    Shot("explorer", "phone", 390, 3900),
    Shot("costs", "light", 1200, 2340),
    Shot("costs", "dark", 1200, 2340),
    Shot("costs", "phone", 390, 2900),
    Shot("sweep", "light", 1200, 1400),
    Shot("report", "light", 1280, 4700),
    Shot("report", "dark", 1280, 4700),
    Shot("report", "phone", 390, 6900),
    Shot("example", "light", 1280, 4700),
    Shot("example", "dark", 1280, 4700),
    Shot("example", "phone", 390, 6900),
)


def write_pages(folder: Path) -> None:
    """Every page that depends on the code alone, as ``<page>.html``."""
    for name, options in REPORTS.items():
        cli.main(["report", *options, "--format", "html", "-o", f"{folder}/{name}.html"], standalone_mode=False)
    (folder / "example.html").write_text(example(), encoding="utf-8")


def take(shot: Shot, folder: Path, picture: Path) -> None:
    """A picture of a page in a folder."""
    page = CALIBRATED if shot.page == "report" else folder / f"{shot.page}.html"
    screenshot(page.as_uri(), picture, shot.width, shot.height, dark=shot.face == "dark")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the pictures.")
@click.option("--page", "pages", multiple=True, help="Only of this page; repeatable.")
def main(out: Path, pages: tuple[str, ...]) -> None:
    """Make every page, and a picture of each `Shot`."""
    out.mkdir(parents=True, exist_ok=True)
    told = PngInfo()
    told.add_text(FONTS, fonts())
    with tempfile.TemporaryDirectory() as folder:
        write_pages(Path(folder))
        for shot in SHOTS:
            if pages and shot.page not in pages:
                continue
            picture = out / shot.file
            take(shot, Path(folder), picture)
            Image.open(picture).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
                picture, optimize=True, pnginfo=told
            )
            click.echo(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
