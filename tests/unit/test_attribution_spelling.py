"""Words and tokens as text: kept per sample, united over samples."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.probes.attribution.lens import HeadWords
from calibrate.probes.attribution.spelling import frequent_words, spell, strongest_tokens

WORDS = {1: " red", 2: "blue", 3: "größe", 4: "?"}


def row(heads: list[HeadWords], text: list[int]) -> np.ndarray:
    return spell(heads, text, lambda ids: WORDS[ids[0]])


def test_heads_are_ordered_by_samples_and_their_words_by_how_often():
    rows = [
        row([HeadWords(2, 0, (1, 2)), HeadWords(5, 1, (3,))], []),
        row([HeadWords(2, 0, (2, 4))], []),
    ]
    assert rows[0].dtype == np.uint8
    assert frequent_words(rows) == [
        {"layer": 2, "head": 0, "samples": 2, "words": ["blue", "red", "?"]},
        {"layer": 5, "head": 1, "samples": 1, "words": ["größe"]},
    ]
    assert frequent_words([]) == []


def test_token_effects_are_means_over_occurrences():
    rows = [row([], [1, 4]), row([], [1, 3])]
    found = strongest_tokens(rows, [np.asarray([0.2, 0.9]), np.asarray([0.6, -0.1])])
    assert [(one["token"], one["occurrences"]) for one in found] == [("?", 1), ("red", 2), ("größe", 1)]
    assert [one["effect"] for one in found] == pytest.approx([0.9, 0.4, -0.1])
