"""Cells under headers, as plain text of `WIDTH` columns or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from tabulate import tabulate

#: Columns of words; numbers stand on the right.
_TEXT_COLUMNS = frozenset(
    {
        *("policy", "", "layers", "image sees image", "text sees image", "decoding sees", "then"),
        *("rung", "kind of question", "engine", "carries it", "why"),
    }
)
#: Letters of a line of plain text; longer cells go on in the next line, where they can be broken.
WIDTH = 100
#: A column is not folded to less than this; a header is wider than its name.
_NARROW, _PADDING = 16, 2
#: Runs of layers that are shown; of more, the first and the last.
_MOST_RUNS = 8
_TABULATE = {"table": "simple", "md": "github"}


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], fmt: str = "table") -> str:
    """A table whose cells arrive formatted: tabulate must not parse numbers back."""
    cells = [[str(cell) for cell in row] for row in rows]
    if fmt == "table":
        cells = _fitted(headers, cells)
    align = ["left" if name in _TEXT_COLUMNS else "right" for name in headers]
    return tabulate(cells, headers, tablefmt=_TABULATE[fmt], disable_numparse=True, colalign=align)


def _fitted(headers: Sequence[str], cells: list[list[str]]) -> list[list[str]]:
    """The cells, the longest of them folded so that a line has at most `WIDTH` letters, if that can be."""
    for _ in headers:
        columns = zip(*cells, strict=True) if cells else [()] * len(headers)
        widths = [max(len(name) + _PADDING, _longest(column)) for name, column in zip(headers, columns, strict=True)]
        excess = sum(widths) + 2 * (len(widths) - 1) - WIDTH
        if excess <= 0 or max(widths) <= _NARROW:
            break
        widest = widths.index(max(widths))
        second = sorted(widths)[-2] if len(widths) > 1 else _NARROW
        room = max(widths[widest] - excess, _NARROW, min(second, widths[widest] - 1))
        cells = [[folded(cell, room) if i == widest else cell for i, cell in enumerate(row)] for row in cells]
    return cells


def _longest(cells: Iterable[str]) -> int:
    return max((len(line) for cell in cells for line in cell.split("\n")), default=0)


def folded(text: str, width: int) -> str:
    """Text in lines of at most so many letters, broken behind commas and spaces and before plus signs where it can
    be."""
    lines = [""]
    for piece in re.findall(r"\+?[^,+ ]*[, ]?", text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def layer_runs(counts: Iterable[float]) -> str:
    """Tokens per layer: ``144 x 4, 20 x 3`` is 144 tokens in each of four layers, then 20 in three."""
    runs = [(count, len(list(layers))) for count, layers in groupby(counts)]
    shown = [f"{count:.4g} x {layers}" if count % 1 else f"{count:.0f} x {layers}" for count, layers in runs]
    return ", ".join(shown if len(shown) <= _MOST_RUNS else [*shown[:4], "...", *shown[-3:]])
