"""Which context tokens stay, by their place in the context and by what they are (context pruning figures 10 and 17).

The paper tells parts of speech apart, for which a tagger would be needed; here tokens are told apart by their letters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibrate.probes.stats import Array

#: Intervals of the context, as in the paper.
INTERVALS = 10
KINDS = ("letters", "digits", "punctuation", "other")


def kind_of(text: str) -> str:
    """What a token is, by its text."""
    letters = text.strip()
    if letters.isalpha():
        return "letters"
    if any(sign.isdigit() for sign in letters):
        return "digits"
    return "other" if not letters or any(sign.isalpha() for sign in letters) else "punctuation"


def kept_by_place(kept: Array) -> Array:
    """Share of the tokens that stay in each of `INTERVALS` equal intervals, ``[L, 10]`` of ``[L, tokens]``; NaN for an
    interval without tokens.
    """
    place = np.arange(kept.shape[1]) * INTERVALS // max(kept.shape[1], 1)
    return _shares(kept, [place == interval for interval in range(INTERVALS)])


def kept_by_kind(kept: Array, ids: list[int], decode: Callable[[list[int]], str]) -> Array:
    """Share of the tokens that stay of each of `KINDS`, ``[L, 4]``; NaN for a kind without tokens.

    Args:
        ids: of the context's tokens.
        decode: token ids to text.
    """
    kinds = np.asarray([kind_of(decode([token])) for token in ids])
    return _shares(kept, [kinds == kind for kind in KINDS])


def _shares(kept: Array, groups: list[Array]) -> Array:
    blank = np.full(len(kept), np.nan)
    return np.stack([kept[:, group].mean(axis=1) if group.any() else blank for group in groups], axis=1)
