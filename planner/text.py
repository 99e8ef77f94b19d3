"""Text from elsewhere (an answer, an id, a file name) made safe for a terminal and for a spreadsheet; what a word may
have been meant for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

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


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names what a word may have been meant for, or nothing: known words that it is short for, else the one
    most like it."""
    words = list(known)
    near = [one for one in words if word and one.startswith(f"{word}-")] or get_close_matches(word, words, 1, 0.5)
    return f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
