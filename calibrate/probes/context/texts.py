"""Long contexts to put before a question, from the other annotations of the sample set or from the user's own texts.

Context pruning (section 3.1) concatenates other annotations of the same image and leaves out those that give the answer
away. So does this module: it makes statements of other samples' questions and answers, those of the same image first,
then those of other images, in an order drawn by seed; none contains the words of an accepted answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibrate.inputs.answers import normalise
from calibrate.inputs.samples import Sample, SampleSet
from planner.errors import InputError, SampleError


class ContextTexts:
    """Makes contexts of a wanted number of tokens.

    Args:
        samples: the whole set, whose annotations are used.
        tokenizer: counts and cuts.
        own: the user's texts, paragraphs between blank lines; used instead of annotations.
        seed: of the order.
    """

    def __init__(self, samples: SampleSet, tokenizer: Any, own: str = "", seed: int = 0) -> None:
        self._samples, self._tokenizer, self._seed = samples, tokenizer, seed
        self._own = [paragraph.strip() for paragraph in own.split("\n\n") if paragraph.strip()]

    def lengthened(self, number: int, tokens: int) -> Sample:
        """Sample `number` with a context of `tokens` tokens between image and question.

        Statements are repeated in the same order where there are too few.

        Raises:
            SampleError: no statement is left once those with the answer are out.
        """
        sample: Sample = self._samples[number]
        ids: list[int] = []
        statements = list(self._statements(number, sample))
        if not statements:
            raise SampleError(
                f"{sample.where}: no other annotation or text is free of its answer, so there is no context",
                "Give more samples, or long texts of your own",
            )
        while len(ids) < tokens:
            text = " ".join(statements)
            ids += self._tokenizer(f" {text}" if ids else text, add_special_tokens=False)["input_ids"]
        context = self._tokenizer.decode(ids[:tokens]).strip()
        return replace(sample, prompt=f"{context}\n{sample.prompt}")

    def _statements(self, number: int, sample: Sample) -> Iterator[str]:
        order = random.Random(f"{self._seed}:{number}")
        if self._own:
            paragraphs = list(self._own)
            order.shuffle(paragraphs)
            yield from (one for one in paragraphs if not _gives_away(one, sample))
            return
        others = [
            other
            for position, other in enumerate(self._samples)
            if position != number and other.prompt != sample.prompt
        ]
        order.shuffle(others)
        # A stable sort, so that the drawn order stays within each group.
        others.sort(key=lambda other: other.images != sample.images)
        seen: set[str] = set()
        for other in others:
            statement = f"{other.prompt} {other.answers[0]}." if other.answers else other.prompt
            if statement not in seen and not _gives_away(statement, sample):
                seen.add(statement)
                yield statement


def read_texts(path: str) -> str:
    """The user's long texts.

    Raises:
        InputError: the file cannot be read, or holds no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the context texts {path}: {error}", "Give a text file in UTF-8") from error
    if not text.strip():
        raise InputError(f"the context texts {path} are empty", "Put paragraphs into it, with blank lines between them")
    return text


def _gives_away(text: str, sample: Sample) -> bool:
    words = normalise(text)
    for answer in sample.answers:
        wanted = normalise(answer)
        if wanted and any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1)):
            return True
    return False
