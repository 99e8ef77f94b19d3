"""SVG text made ready to stand beside others in one HTML page that has a light and a dark face."""

from __future__ import annotations

import html
import re

from planner.report.drawing import COLOURS, DENSE, GRID, INK, MARK, PALE

#: Colour of a picture to the page's variable for it.
VARIABLES = {
    INK: "ink", GRID: "grid", PALE: "pale", DENSE: "dense", MARK: "mark",
    **{colour: f"series-{number}" for number, colour in enumerate(COLOURS, 1)},
}  # fmt: skip
#: Names that matplotlib gives to groups and nothing refers to.
_IDLE = re.compile(r' id="(?!C\d+_)[A-Za-z][\w.]*_\d+"')
_NAMES = re.compile(r'(\bid="|href="#|url\(#)')
_COLOUR = re.compile("|".join(VARIABLES), re.IGNORECASE)


def inline(svg: str, number: int, title: str) -> str:
    """The picture with ids of its own, colours from the page's variables, and a name for those who cannot see it.

    Args:
        number: of the picture on its page.
        title: what it shows.
    """
    own = _NAMES.sub(lambda found: f"{found[1]}p{number}-", _IDLE.sub("", svg))
    themed = _COLOUR.sub(lambda found: f"var(--{VARIABLES[found[0].lower()]})", own)
    return themed.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
