"""The words of an answer, as they are compared.

Texts are lower-cased, punctuation is removed, the articles ``a``, ``an``, ``the`` are dropped and the number words zero
to ten become digits: the normalisation that visual question answering benchmarks use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
# An apostrophe inside a word stays, and so does a decimal point.
_PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|[^\w\s.']|_")


def normalise(text: str) -> list[str]:
    """The words that are compared."""
    words = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", text.lower())).split()
    words = [word.strip("'") for word in words]
    return [_NUMBERS.get(word, word) for word in words if word and word not in _ARTICLES]


def matches(generated: str, accepted: str | Iterable[str]) -> bool:
    """True when `generated` starts with the words of an accepted answer: the metric `leading`.

    So "Yes, there is." is right for "yes" and "a red circle" for "red circle", while "yesterday" is not for "yes".
    An accepted answer without any word (such as ``"a"`` alone) is compared with its article kept.
    """
    words = normalise(generated)
    for answer in [accepted] if isinstance(accepted, str) else accepted:
        wanted = normalise(answer)
        if wanted and words[: len(wanted)] == wanted:
            return True
        if not wanted and generated.strip().lower().startswith(answer.strip().lower()):
            return True
    return False
