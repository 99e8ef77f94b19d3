"""Words and tokens of an attributed sample as text, kept beside its numbers: a profile is read without the tokenizer.

A row is JSON in UTF-8 bytes, since tables hold arrays: the words of each top head, and the text tokens in order.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from calibrate.probes.attribution.lens import HeadWords
from calibrate.probes.stats import Array

#: Heads, words of each and text tokens that a summary names.
HEADS, WORDS, TOKENS = 10, 10, 10


def spell(words: Sequence[HeadWords], text: Sequence[int], decode: Callable[[list[int]], str]) -> Array:
    """One sample's row.

    Args:
        words: logit lens of its top heads.
        text: ids of its text tokens after the image.
        decode: token ids to text.
    """
    heads = [[one.layer, one.head, [decode([token]).strip() for token in one.tokens]] for one in words]
    spelled = {"heads": heads, "text": [decode([token]).strip() for token in text]}
    return np.frombuffer(json.dumps(spelled, ensure_ascii=False).encode(), np.uint8)


def frequent_words(rows: Sequence[Array]) -> list[dict[str, Any]]:
    """Heads that are on top in most samples, and the words they point to in most of them, as JSON entries."""
    samples: Counter[tuple[int, int]] = Counter()
    words: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for row in rows:
        for layer, head, found in _read(row)["heads"]:
            samples[layer, head] += 1
            readable = [word for word in found if word and word.isprintable()]
            # Once a sample, best first: equally frequent words keep that order.
            words[layer, head].update(dict.fromkeys(readable, 1))
    order = sorted(samples, key=lambda head: (-samples[head], head))[:HEADS]
    return [
        {
            "layer": layer,
            "head": head,
            "samples": samples[layer, head],
            "words": [word for word, _ in words[layer, head].most_common(WORDS)],
        }
        for layer, head in order
    ]


def strongest_tokens(rows: Sequence[Array], effects: Sequence[Array]) -> list[dict[str, Any]]:
    """Text tokens by the mean share of the logit lost when they cannot receive the image, as JSON entries."""
    lost: dict[str, list[float]] = defaultdict(list)
    for row, values in zip(rows, effects, strict=True):
        for token, value in zip(_read(row)["text"], values.tolist(), strict=False):
            lost[token].append(value)
    means = {token: float(np.mean(values)) for token, values in lost.items()}
    order = sorted(means, key=lambda token: (-means[token], token))[:TOKENS]
    return [{"token": token, "effect": means[token], "occurrences": len(lost[token])} for token in order]


def _read(row: Array) -> Any:
    return json.loads(row.tobytes())
