"""The shipped sample sets: balanced, disjoint, complete, and what the script draws."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "profiles" / "reference" / "easy_vqa"
SIZES = {"calibration": 256, "evaluation": 400, "test": 1000}


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def digests(name: str) -> list[str]:
    return [hashlib.sha256((FOLDER / row["image"]).read_bytes()).hexdigest() for row in rows(name)]


@pytest.mark.parametrize("name", SIZES)
def test_half_yes_no_and_half_of_each_string_yes(name: str) -> None:
    per_string: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows(name):
        if row["type"] == "yes/no":
            per_string[row["prompt"]][row["answer"]] += 1
    assert sum(sum(c.values()) for c in per_string.values()) == SIZES[name] // 2
    assert {prompt for prompt, c in per_string.items() if c["yes"] != c["no"]} == set()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("kind", "answers"), [("shape", 3), ("color", 8)])
def test_what_questions_are_balanced_over_their_answers(name: str, kind: str, answers: int) -> None:
    counts = Counter(row["answer"] for row in rows(name) if row["type"] == kind)
    assert sum(counts.values()) == SIZES[name] // 4
    assert len(counts) == answers
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", SIZES)
def test_every_image_exists_and_none_is_left_over(name: str) -> None:
    named = Counter(row["image"] for row in rows(name))
    assert named.total() == SIZES[name]
    assert max(named.values()) == (2 if name == "test" else 1) and len(named) > 0.9 * SIZES[name]
    on_disk = {p.relative_to(FOLDER).as_posix() for p in (FOLDER / "images" / name).iterdir()}
    lent = {p.relative_to(FOLDER).as_posix() for p in (FOLDER / "images" / "evaluation").iterdir()}
    assert on_disk == set(named) - (lent if name == "test" else set())
    assert set(named) <= on_disk | lent
    with Image.open(FOLDER / next(iter(named))) as image:
        assert image.size == (64, 64)


def test_no_question_of_the_test_set_was_asked_before() -> None:
    asked = {(row["image"].rpartition("/")[2], row["prompt"]) for row in rows("evaluation")}
    tested = [(row["image"].rpartition("/")[2], row["prompt"]) for row in rows("test")]
    assert not asked & set(tested) and len(set(tested)) == 1000


def test_calibration_shares_no_image_with_the_others() -> None:
    calibration, evaluation = digests("calibration"), digests("evaluation")
    assert not set(calibration) & {*evaluation, *digests("test")}
    assert len(set(calibration)) == len(calibration)
    assert len(set(evaluation)) == len(evaluation)


def test_answers_agree_with_what_other_samples_say_of_the_kind() -> None:
    kinds = {"yes": "yes/no", "no": "yes/no", "circle": "shape", "rectangle": "shape", "triangle": "shape"}
    for name in SIZES:
        assert all(row["type"] == kinds.get(row["answer"], "color") for row in rows(name))


def test_the_script_draws_the_shipped_sets_again(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")
    from planner.profiles.reference.train.samples import write_all

    priors = write_all(tmp_path, seed=0)
    for name in SIZES:
        assert (tmp_path / f"{name}.jsonl").read_text() == (FOLDER / f"{name}.jsonl").read_text()
        # A language prior must not carry the score: half of the yes/no questions, and chance on the others.
        assert priors[name]["all"] < 0.4
        assert priors[name]["yes/no"] == 0.5
    assert (tmp_path / "README.md").read_text() == (FOLDER / "README.md").read_text()


def test_attributes_see_through_both_forms_of_negation() -> None:
    from planner.profiles.reference.train.data import Question, attributes

    def told(prompt: str, answer: str) -> tuple[str | None, str | None]:
        return attributes([Question(prompt, answer, 0)])

    assert told("is no blue shape present?", "no") == (None, "blue")
    assert told("is no blue shape present?", "yes") == (None, None)
    assert told("does the image not contain a circle?", "no") == ("circle", None)
    assert told("is there a circle?", "yes") == ("circle", None)
    assert told("is there a circle?", "no") == (None, None)
    assert told("what is the red shape?", "triangle") == ("triangle", "red")
    assert told("what color is the shape?", "teal") == (None, "teal")
