"""The words that pictures and questions are made of: classes and their kinds, places, numbers.

Decisions: every class is one token of the language model with a leading space, so that a patch can be taught to say it,
and countable with a regular plural; all of them are drawn in all five styles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

#: Question types. The last two bring text beside the picture: some that is beside the point, some that is needed.
QUESTION_KINDS = (
    "name",
    "kind",
    "count",
    "where",
    "relation",
    "yes/no",
    "description",
    "irrelevant context",
    "relevant context",
)
TRAINED_STYLES = ("google", "twitter", "fluent-flat", "fluent-modern")
HELD_OUT_STYLE = "openmoji"
STYLES = (*TRAINED_STYLES, HELD_OUT_STYLE)

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
#: Answers to "where", by cell of the three by three ninths of the picture, row by row.
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Class:
    """One thing that can be drawn.

    Attributes:
        name: what it is called; one token.
        kind: what kind of thing it is.
        code: Unicode code point, lower-case hexadecimal.
        fluent: its file's name in the Fluent set, which goes by names.
    """

    name: str
    kind: str
    code: str
    fluent: str

    @property
    def plural(self) -> str:
        """The name of several."""
        if self.name == "fish":
            return "fish"
        if self.name.endswith(("s", "x", "ch", "sh", "tomato")):
            return f"{self.name}es"
        if self.name.endswith("y"):
            return f"{self.name[:-1]}ies"
        return f"{self.name}s"

    @property
    def one(self) -> str:
        """The name with its indefinite article."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


def load_classes() -> tuple[Class, ...]:
    """All classes, in the order of ``classes.json``."""
    rows = json.loads(Path(__file__).with_name("classes.json").read_text(encoding="utf-8"))
    return tuple(Class(**row) for row in rows)


CLASSES = load_classes()


def at(cell: int) -> str:
    """A place as an adverbial: ``at the top left``, ``in the middle``."""
    place = PLACES[cell]
    return f"{'in' if place == 'middle' else 'on' if place in ('left', 'right') else 'at'} the {place}"
