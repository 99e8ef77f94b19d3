"""The easy-VQA data as its own Python package (easy-vqa 1.0, MIT) carries it.

Decisions: the package is located, never imported, so nothing of it runs; images are named by their id; whatever a
label needs (an image's shape and colour) is derived from the questions and answers of the split at hand.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
TYPES = ("yes/no", "shape", "color")


@dataclass(frozen=True)
class Question:
    """One question about one image; ``answer`` is a single word."""

    prompt: str
    answer: str
    image_id: int

    @property
    def type(self) -> str:
        """``yes/no``, ``shape`` or ``color``, by the kind of the answer."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "shape" if self.answer in SHAPES else "color"


@dataclass(frozen=True)
class Split:
    """One split of the data set: its questions, and the folder of ``<image id>.png`` files."""

    name: str
    questions: tuple[Question, ...]
    images: Path

    def by_image(self) -> dict[int, list[Question]]:
        """Questions grouped by image id, ids ascending, questions in file order."""
        grouped: dict[int, list[Question]] = defaultdict(list)
        for question in self.questions:
            grouped[question.image_id].append(question)
        return dict(sorted(grouped.items()))

    def first(self, images: int | None) -> Split:
        """The part of the split that asks about its first ``images`` images; None is all of it."""
        ids = set(list(self.by_image())[:images])
        return Split(self.name, tuple(q for q in self.questions if q.image_id in ids), self.images)


def package_folder() -> Path:
    """Folder of the installed easy_vqa package.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    found = find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the training data is the package easy-vqa: pip install easy-vqa==1.0")
    return Path(found.origin).parent


def load_split(name: str) -> Split:
    """Read the split ``train`` or ``test``."""
    folder = package_folder() / "data" / name
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return Split(name, tuple(Question(*row) for row in rows), folder / "images")


def attributes(questions: list[Question]) -> tuple[str | None, str | None]:
    """Shape and colour of one image, as far as its questions and answers give them away.

    A "what" answer names one attribute and often its question names the other ("what is the red shape?"); a yes/no
    pair names one when the statement holds. Both forms of negation occur: "not", and "is no X present".
    """
    shape: str | None = None
    color: str | None = None
    for question in questions:
        words = question.prompt.rstrip("?").split()
        negated = "not" in words or "no" in words
        if question.type == "yes/no":
            known = [word for word in words if (question.answer == "yes") != negated]
        else:
            known = [*words, question.answer]
        shape = next((word for word in known if word in SHAPES), shape)
        color = next((word for word in known if word in COLORS), color)
    return shape, color


def majority_answers(questions: tuple[Question, ...]) -> dict[str, str]:
    """The commonest answer of each question string: what can be said without any image."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        counts[question.prompt][question.answer] += 1
    return {prompt: counter.most_common(1)[0][0] for prompt, counter in sorted(counts.items())}
