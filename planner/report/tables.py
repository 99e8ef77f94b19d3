"""Cells under headers, as plain text or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

#: Columns of words; numbers stand on the right.
_TEXT_COLUMNS = frozenset(
    {"policy", "", "layers", "image sees image", "text sees image", "decoding sees", "then", "rung", "kind of question"}
)
_TABULATE = {"table": "simple", "md": "github"}


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], fmt: str = "table") -> str:
    """A table whose cells arrive formatted: tabulate must not parse numbers back."""
    align = ["left" if name in _TEXT_COLUMNS else "right" for name in headers]
    return tabulate(rows, headers, tablefmt=_TABULATE[fmt], disable_numparse=True, colalign=align)
