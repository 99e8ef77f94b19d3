"""Text from elsewhere (an answer, an id, a file name) made safe for a terminal and for a spreadsheet."""

from __future__ import annotations

import unicodedata

#: What spreadsheets take for the start of a formula (OWASP, "CSV injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """Text whose control characters, but for tabs and line ends, are spelled out: no colours, titles, or moves of the
    cursor, and no letters that run backwards."""
    return "".join(_spelled(letter) if _commands(letter) else letter for letter in text)


def _commands(letter: str) -> bool:
    if letter in "\n\t":
        return False
    return (
        unicodedata.category(letter) in ("Cc", "Cs") or "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    )


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def csv_text(text: str) -> str:
    """A cell that a spreadsheet shows as it is and never computes."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
