"""Pictures and questions of the pretrained model: what is asked has one answer, what is shipped is complete."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planner.profiles.reference.train.pretrained.layout import BORDER, CELL, IMAGE_SIZE, SLOTS, draw_layout
from planner.profiles.reference.train.pretrained.questions import Asker, things
from planner.profiles.reference.train.pretrained.vocabulary import (
    CLASSES,
    HELD_OUT_STYLE,
    NUMBERS,
    PLACES,
    QUESTION_KINDS,
    STYLES,
    TRAINED_STYLES,
    Class,
    at,
)

FOLDER = Path(__file__).resolve().parents[2] / "profiles" / "reference" / "pretrained"
SIZES = {"calibration": 640, "evaluation": 1200, "held_out": 400}


def rows(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_thing_lies_whole_in_a_ninth_of_its_own() -> None:
    layout = draw_layout(np.random.default_rng(0), 300, 4)
    assert set(layout.amount) == {1, 2, 3, 4, 6, 9}
    for picture in range(len(layout)):
        found = things(layout, picture)
        assert len({thing.cell for thing in found}) == len(found) == layout.amount[picture]
        for thing in found:
            column, row = thing.x // CELL, thing.y // CELL
            assert thing.cell == 3 * row + column
            inner = [offset for line in (thing.x, thing.y) for border in (CELL, 2 * CELL) for offset in [line - border]]
            assert all(abs(offset) >= BORDER - 1e-3 for offset in inner)
            assert thing.size / 2 <= min(thing.x, thing.y, IMAGE_SIZE - thing.x, IMAGE_SIZE - thing.y) + 1e-3
    assert (layout.classes[np.arange(SLOTS) >= layout.amount[:, None]] == -1).all()


def test_names_are_counted_and_pluralised() -> None:
    assert len(CLASSES) >= 60
    assert len({drawn.name for drawn in CLASSES}) == len(CLASSES)
    by_name = {drawn.name: drawn for drawn in CLASSES}
    plurals = {"bus": "buses", "butterfly": "butterflies", "fish": "fish", "watch": "watches", "dog": "dogs"}
    assert {name: by_name[name].plural for name in plurals} == plurals
    assert Class("apple", "food", "", "").one == "an apple"
    assert [at(cell) for cell in (0, 3, 4)] == ["at the top left", "on the left", "in the middle"]


def test_answers_hold_in_the_picture() -> None:
    """Each kind that names a place or a number, checked from the question's own words."""
    rng = np.random.default_rng(1)
    layout = draw_layout(rng, 200, 4)
    asked: Counter[str] = Counter()
    for picture in range(len(layout)):
        asker, found = Asker(layout, picture, rng), things(layout, picture)
        at_place = {at(thing.cell): thing.drawn for thing in found}
        names = Counter(thing.drawn.name for thing in found)
        for kind in QUESTION_KINDS:
            question = asker.ask(kind)
            if question is None:
                continue
            asked[kind] += 1
            place = next(
                (p for p in sorted(at_place, key=len, reverse=True) if question.prompt.endswith(f"{p}?")), None
            )
            if kind == "name" and place:
                assert question.answer == at_place[place].name
            elif kind == "kind":
                assert place and question.answer == at_place[place].kind
            elif kind == "where":
                thing = next(t for t in found if t.drawn.name in question.prompt.split()[-1])
                assert names[thing.drawn.name] == 1
                assert question.answer == PLACES[thing.cell]
            elif kind == "count":
                counted = question.prompt.split()[2]
                expected = sum(n for name, n in names.items() if counted in ("things", _plural(name)))
                assert question.answer == NUMBERS[expected]
            elif kind == "yes/no" and place:
                assert (question.answer == "yes") == (at_place[place].one in question.prompt)
            elif kind == "description":
                assert question.answer.count(".") == 1 + len(found)
    assert set(asked) == set(QUESTION_KINDS)


def _plural(name: str) -> str:
    return next(drawn.plural for drawn in CLASSES if drawn.name == name)


@pytest.mark.parametrize("name", SIZES)
def test_shipped_sets_are_complete_and_balanced(name: str) -> None:
    found = rows(name)
    assert len(found) == SIZES[name]
    kinds = Counter(row["kind"] for row in found)
    assert set(kinds) == set(QUESTION_KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    said = Counter(row["answer"] for row in found if row["kind"] == "yes/no")
    assert abs(said["yes"] - said["no"]) <= 0.15 * said.total()
    named = {str(row["image"]) for row in found}
    assert named == {path.relative_to(FOLDER).as_posix() for path in (FOLDER / "images" / name).iterdir()}
    with Image.open(FOLDER / sorted(named)[0]) as image:
        assert image.size == (IMAGE_SIZE, IMAGE_SIZE)
    styles = {row["style"] for row in found}
    assert styles == ({HELD_OUT_STYLE} if name == "held_out" else set(TRAINED_STYLES))


def test_shipped_sets_share_no_picture() -> None:
    contents = [path.read_bytes() for name in SIZES for path in (FOLDER / "images" / name).iterdir()]
    assert (
        len(set(contents))
        == len(contents)
        == SIZES["calibration"] // 2 + (SIZES["evaluation"] + SIZES["held_out"]) // 4
    )
    assert sum(map(len, contents)) < 4_000_000


def test_shipped_pairs_differ_in_the_drawing_alone() -> None:
    found = rows("pairs")
    scenes = [found[start : start + 10] for start in range(0, len(found), 10)]
    assert len(scenes) == 12
    for number, scene in enumerate(scenes):
        assert {(row["scene"], row["prompt"], row["objects"], row["object_size"]) for row in scene} == {
            (number, "What is in the picture?", 1, scene[0]["object_size"])
        }
        assert [row["style"] for row in scene] == [*STYLES, *STYLES]
        pixels = np.stack([np.asarray(Image.open(FOLDER / str(row["image"]))).astype(int) for row in scene])
        # The ground round the thing is the same but for what compression leaves.
        same = np.abs(pixels - pixels[0]).max(axis=(0, 3)) < 24
        assert 0.7 < same.mean() < 0.995
    names = [scene[thing]["answer"] for scene in scenes for thing in (0, 5)]
    assert len(set(names)) == 24
    named = {str(row["image"]) for row in found}
    assert named == {path.relative_to(FOLDER).as_posix() for path in (FOLDER / "images" / "pairs").iterdir()}
