"""What can be asked about a layout, and the answers.

Decisions: only what has one answer is asked; the answer never follows from the words alone (as many "yes" as "no", a
thing's kind asked by its place); descriptions name every thing in reading order; a context beside the picture either
tells nothing (but may name things that are there) or is needed for the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .layout import Layout
from .vocabulary import CLASSES, NUMBERS, PLACES, Class, at

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
INVENTED = ("blick", "dax", "wug", "fep", "toma", "zorp")
MOST_DESCRIBED = 4
FAR = 24.0  # pixels of difference from which on one thing is left of or above another
NEARER = 1.35  # the next but one is so many times as far away, or "next to" is not asked
_ASIDES = (
    "It rained all day yesterday.",
    "The shop around the corner closes at six.",
    "{person} is reading a book about {plural}.",
    "My uncle sold his {name} last year.",
    "{person} has never seen {one}.",
    "A friend of mine draws {plural} all day.",
    "This picture was printed in the morning.",
    "{person} once lost {one} on a train.",
)

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Attributes:
        kind: one of ``QUESTION_KINDS``.
        prompt: the user's text.
        answer: the only right answer.
        size: pixels of the thing it is about; 0 where it is about several or none.
    """

    kind: str
    prompt: str
    answer: str
    size: float = 0.0


@dataclass(frozen=True)
class Thing:
    """One thing in a picture."""

    drawn: Class
    cell: int
    x: float
    y: float
    size: float


def things(layout: Layout, row: int) -> list[Thing]:
    """The things of one picture, in reading order of their ninths."""
    found = []
    for slot in range(layout.amount[row]):
        x, y = layout.centers[row, slot].tolist()
        drawn, cell = CLASSES[layout.classes[row, slot]], int(layout.cells[row, slot])
        found.append(Thing(drawn, cell, x, y, float(layout.sizes[row, slot])))
    return sorted(found, key=lambda thing: thing.cell)


class Asker:
    """Makes questions about one picture.

    Args:
        layout: whose pictures.
        row: which of them.
        rng: source of every choice.
    """

    def __init__(self, layout: Layout, row: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.things = things(layout, row)
        counts = Counter(thing.drawn for thing in self.things)
        self.counts = counts
        self.unique = [thing for thing in self.things if counts[thing.drawn] == 1]
        self._makers: dict[str, Callable[[], Question | None]] = {
            "name": self.name,
            "kind": self.kind,
            "count": self.count,
            "where": self.where,
            "relation": self.relation,
            "yes/no": self.yes_no,
            "description": self.description,
            "irrelevant context": self.irrelevant,
            "relevant context": self.relevant,
        }

    def ask(self, kind: str) -> Question | None:
        """A question of one kind, or None where the picture allows none."""
        return self._makers[kind]()

    def stream(self, kinds: dict[str, float]) -> Iterator[Question]:
        """Questions without end, their kinds drawn in the given proportions."""
        names, weights = list(kinds), np.array(list(kinds.values()))
        while True:
            for index in self.rng.choice(len(names), size=16, p=weights / weights.sum()):
                question = self.ask(names[index])
                if question is not None:
                    yield question

    def _any(self, values: Sequence[T]) -> T:
        return values[int(self.rng.integers(len(values)))]

    def _coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def _absent(self) -> Class:
        while True:
            drawn = CLASSES[self.rng.integers(len(CLASSES))]
            if drawn not in self.counts:
                return drawn

    def name(self) -> Question:
        """What lies at a place."""
        thing = self._any(self.things)
        if len(self.things) == 1 and self._coin():
            return Question("name", "What is in the picture?", thing.drawn.name, thing.size)
        return Question("name", f"What is {at(thing.cell)}?", thing.drawn.name, thing.size)

    def kind(self) -> Question:
        """What kind of thing lies at a place; rare kinds as often as common ones, where the picture lets choose."""
        by_kind: dict[str, list[Thing]] = {}
        for thing in self.things:
            by_kind.setdefault(thing.drawn.kind, []).append(thing)
        thing = self._any(by_kind[self._any(list(by_kind))])
        return Question("kind", f"What kind of thing is {at(thing.cell)}?", thing.drawn.kind, thing.size)

    def count(self) -> Question:
        """How many there are, of all things or of one class."""
        several = [drawn for drawn, number in self.counts.items() if number > 1]
        if not several or self.rng.random() < 0.4:
            if self.rng.random() < 0.7:
                return Question("count", "How many things are in the picture?", NUMBERS[len(self.things)])
            drawn = self._any(list(self.counts))
        else:
            drawn = self._any(several)
        return Question("count", f"How many {drawn.plural} are in the picture?", NUMBERS[self.counts[drawn]])

    def where(self) -> Question | None:
        """Where a thing lies of which there is one."""
        if not self.unique:
            return None
        thing = self._any(self.unique)
        return Question("where", f"Where is the {thing.drawn.name}?", PLACES[thing.cell], thing.size)

    def relation(self) -> Question | None:
        """What lies beside a thing, in the same row or column of ninths, or nearest to it."""
        pairs = []
        for anchor in self.unique:
            others = [thing for thing in self.things if thing is not anchor]
            row = [thing for thing in others if thing.cell // 3 == anchor.cell // 3]
            column = [thing for thing in others if thing.cell % 3 == anchor.cell % 3]
            for words, line, step in (
                ("to the left of", row, -1),
                ("to the right of", row, 1),
                ("above", column, -3),
                ("below", column, 3),
            ):
                ahead = [thing for thing in line if (thing.cell - anchor.cell) * step > 0]
                if ahead:
                    pairs.append((words, anchor, min(ahead, key=lambda thing: abs(thing.cell - anchor.cell))))
            far = sorted((float(np.hypot(t.x - anchor.x, t.y - anchor.y)), t.cell, t) for t in others)
            if far and (len(far) == 1 or far[1][0] >= NEARER * far[0][0]):
                pairs.append(("next to", anchor, far[0][2]))
        if not pairs:
            return None
        words, anchor, found = self._any(pairs)
        return Question("relation", f"What is {words} the {anchor.drawn.name}?", found.drawn.name, found.size)

    def yes_no(self) -> Question:
        """Whether something is there, at a place, or beside another thing."""
        yes, case = self._coin(), self.rng.random()
        answer = "yes" if yes else "no"
        if case < 0.3 and len(self.unique) > 1:
            first, second = (self.unique[i] for i in self.rng.choice(len(self.unique), size=2, replace=False))
            sideways = abs(first.x - second.x) > abs(first.y - second.y)
            ahead = first.x - second.x if sideways else first.y - second.y
            if abs(ahead) >= FAR:
                words = ("to the left of", "to the right of") if sideways else ("above", "below")
                said = words[int((ahead > 0) == yes)]
                return Question("yes/no", f"Is the {first.drawn.name} {said} the {second.drawn.name}?", answer)
        thing = self._any(self.things)
        if case < 0.6:
            others = [other.drawn for other in self.things if other.drawn != thing.drawn]
            wrong = self._any(others) if others and self._coin() else self._absent()
            drawn = thing.drawn if yes else wrong
            return Question("yes/no", f"Is there {drawn.one} {at(thing.cell)}?", answer, thing.size)
        drawn = thing.drawn if yes else self._absent()
        return Question("yes/no", f"Is there {drawn.one} in the picture?", answer, thing.size if yes else 0.0)

    def description(self) -> Question | None:
        """All things and their places, in several sentences."""
        number = len(self.things)
        if number > MOST_DESCRIBED:
            return None
        are = "is one thing" if number == 1 else f"are {NUMBERS[number]} things"
        sentences = [f"There {are} in the picture."]
        for thing in self.things:
            one = thing.drawn.one
            sentences.append(f"{one[0].upper()}{one[1:]} is {at(thing.cell)}.")
        return Question("description", "Describe the picture.", " ".join(sentences))

    def irrelevant(self) -> Question | None:
        """Any short question, behind one or two sentences that have nothing to do with it."""
        kind = self._any(("name", "kind", "count", "where", "relation", "yes/no"))
        question = self.ask(kind)
        if question is None:
            return None
        asides = []
        for index in self.rng.choice(len(_ASIDES), size=self.rng.integers(1, 3), replace=False):
            drawn = self._any(self.things).drawn if self._coin() else self._absent()
            words = {"person": self._any(PEOPLE), "name": drawn.name, "plural": drawn.plural, "one": drawn.one}
            asides.append(_ASIDES[index].format(**words))
        return Question("irrelevant context", f"{' '.join(asides)} {question.prompt}", question.answer, question.size)

    def relevant(self) -> Question | None:
        """A question that needs the text and the picture."""
        case = self.rng.integers(3)
        first, second = (PEOPLE[i] for i in self.rng.choice(len(PEOPLE), size=2, replace=False))
        if case == 0 and self.unique:
            thing, word = self._any(self.unique), self._any(INVENTED)
            text = f"In this game {thing.drawn.one} is called a {word}. Where is the {word}?"
            return Question("relevant context", text, PLACES[thing.cell], thing.size)
        if len(self.things) == 1:
            thing = self.things[0]
            text = f"{first} wants the thing in the picture. What does {first} want?"
            return Question("relevant context", text, thing.drawn.name, thing.size)
        mine, other = (self.things[i] for i in self.rng.choice(len(self.things), size=2, replace=False))
        owners = [f"{first} has the thing {at(mine.cell)}.", f"{second} has the thing {at(other.cell)}."]
        text = " ".join(owners if self._coin() else owners[::-1])
        if case == 1 or mine.drawn == other.drawn:
            return Question("relevant context", f"{text} What does {first} have?", mine.drawn.name, mine.size)
        return Question("relevant context", f"{text} Who has the {mine.drawn.name}?", first, mine.size)
