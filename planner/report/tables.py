"""Cells under headers, as plain text or Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

#: Columns of words; numbers stand on the right.
_TEXT_COLUMNS = frozenset(
    {
        *("policy", "", "layers", "image sees image", "text sees image", "decoding sees", "then"),
        *("rung", "kind of question", "engine", "carries it", "why"),
    }
)
#: Letters of a first column in plain text; longer spellings go on in the next line.
FOLD = 48
_TABULATE = {"table": "simple", "md": "github"}


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], fmt: str = "table") -> str:
    """A table whose cells arrive formatted: tabulate must not parse numbers back."""
    if fmt == "table":
        rows = [[folded(str(row[0])), *row[1:]] for row in rows]
    align = ["left" if name in _TEXT_COLUMNS else "right" for name in headers]
    return tabulate(rows, headers, tablefmt=_TABULATE[fmt], disable_numparse=True, colalign=align)


def folded(text: str, width: int = FOLD) -> str:
    """A policy's spelling in lines of at most so many letters, broken behind commas and before plus signs where it can
    be."""
    lines = [""]
    for piece in re.findall(r"\+?[^,+]+,?", text):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)
