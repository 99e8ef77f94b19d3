"""Every page in a browser: as its committed picture shows it, nothing cut off, a silent console, no request."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.browser import CHROMIUM, fonts, run_page, text_within
from tests.integration.test_explorer import CUT_OFF, FRAME
from tests.pages import CALIBRATED, COMPARED, FONTS, SHOTS, Shot, take, write_pages

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
PICTURES = Path(__file__).parents[2] / "reports" / "pages"
#: Pictures are compared in blocks of so many pixels, by their mean grey: letters that are drawn a little otherwise do
#: not count, a missing line of text does.
BLOCK = 16
#: Levels of grey, of 255, by which a block may differ; and the share of blocks that may differ by more.
SHADE, SHARE = 10.0, 0.002


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_pages(folder)
    return folder


@pytest.fixture(scope="module")
def here() -> str:
    return fonts()


def differing(one: Path, other: Path) -> float:
    """Share of the blocks in which two pictures differ."""
    first, second = blocks(one), blocks(other)
    assert first.shape == second.shape
    return float((np.abs(first - second) > SHADE).mean())


def blocks(picture: Path) -> NDArray[np.float64]:
    """Mean grey of each block."""
    with Image.open(picture) as opened:
        grey = opened.convert("RGB").convert("L")
    size = (grey.width // BLOCK, grey.height // BLOCK)
    return np.asarray(grey.resize(size, Image.Resampling.BOX), np.float64)


@pytest.mark.parametrize("shot", [one for one in SHOTS if one.page in COMPARED], ids=lambda one: one.file[:-4])
def test_pages_look_as_their_pictures(shot: Shot, pages: Path, here: str, tmp_path: Path) -> None:
    committed = PICTURES / shot.file
    with Image.open(committed) as opened:
        made_with = opened.info.get(FONTS)
    if made_with != here:
        pytest.skip(f"the picture was made with other fonts: text measures {made_with} there and {here} here")
    for _ in range(2):  # on a machine under load a browser may take its picture before all is drawn
        take(shot, pages, tmp_path / "now.png")
        share = differing(committed, tmp_path / "now.png")
        if share <= SHARE:
            break
    assert share <= SHARE, f"{share:.1%} of {shot.file} differ: python -m tests.pages --out reports/pages"


def test_the_comparison_sees_a_missing_line_and_no_shimmer(tmp_path: Path) -> None:
    """A line of text gone in a picture of phone size is seen; every pixel two levels brighter is not."""
    committed = PICTURES / "costs-phone.png"
    with Image.open(committed) as opened:
        whole = opened.convert("RGB")
    whole.point(lambda level: min(level + 2, 255)).save(tmp_path / "brighter.png")
    assert differing(committed, tmp_path / "brighter.png") == 0
    grey = blocks(committed)
    row = int(np.argmin(grey[:20].mean(axis=1))) * BLOCK
    whole.paste("white", (0, row - 4, whole.width, row + BLOCK + 4))
    whole.save(tmp_path / "less.png")
    assert differing(committed, tmp_path / "less.png") > SHARE


@pytest.mark.parametrize("name", ["example", "report"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_of_a_plans_page_is_cut_off(name: str, width: int, pages: Path, tmp_path: Path) -> None:
    """The page is as wide as its window; what is wider than a phone scrolls in a frame of its own."""
    text = (CALIBRATED if name == "report" else pages / f"{name}.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</body>", CUT_OFF + "</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format("page.html", width), encoding="utf-8")
    dom, console = run_page(frame)
    assert console == [] and json.loads(text_within(dom, "cut-off")) == [width, width, []]


def test_a_plans_page_asks_for_nothing(pages: Path) -> None:
    text = (pages / "example.html").read_text(encoding="utf-8")
    links = re.findall(r"(?:src|href)=\"([^\"]*)\"", text)
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert "<script" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    dom, console = run_page(pages / "example.html")
    assert console == [] and dom.count("<article>") == 6
