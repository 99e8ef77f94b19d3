"""Draw the calibration set (from the training split), and the evaluation and the test set (from the test split).

Decisions: balanced, so that a language prior cannot carry the score. Half of a set are yes/no questions, and each
question string among them comes once with "yes" for every "no"; a quarter ask for a shape, a quarter for a colour,
balanced over the answers and, within an answer, over the question strings. No image is used twice in a set; in the test
set, which needs nearly all images of its split, where none is left. The evaluation set was looked at while the models
were made, so that the test set asks other questions.
Run ``python -m planner.profiles.reference.train.samples`` to write the sets again; the same seed gives the same files.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import click

from .data import TYPES, Question, Split, load_split, majority_answers, package_folder

SIZES = {"calibration": ("train", 256), "evaluation": ("test", 400), "test": ("test", 1000)}
README = """\
# Samples for calibration and evaluation

From [easy-VQA](https://github.com/vzhou842/easy-VQA) by Victor Zhou (package `easy-vqa` 1.0), MIT licence, see
`LICENSE`. Images are unchanged copies; a file's number is its id in the original split.

| set | split | samples | images | yes/no (yes : no) | shape | colour |
|---|---|---|---|---|---|---|
{counts}

Chosen by `train/samples.py`, seed {seed}: every yes/no question string comes with as many "yes" as "no"; "what"
questions are balanced over their answers and, within an answer, over the question strings; each image is used once, a
few of the test set twice. Calibration comes from another split than the others. The evaluation set was looked at while
the models were made; the test set asks none of its questions (many of its images are the same, and stored once). So a
language prior cannot carry a score. What it reaches (the commonest answer of each question string in the whole training
split, no image):

| set | all | yes/no | shape | colour |
|---|---|---|---|---|
{scores}

A line is `{{"image": path relative to this folder, "prompt": question, "answer": one word, "type": yes/no, shape or
color}}`.
"""
FOLDER = Path(__file__).resolve().parent.parent / "easy_vqa"


class _Drawer:
    """Takes questions at random, each on an image that was not used before, or as seldom as possible."""

    def __init__(self, split: Split, rng: random.Random, per_image: int) -> None:
        self.rng, self.per_image = rng, per_image
        self.used: Counter[int] = Counter()
        self.taken: set[Question] = set()
        self.pool: dict[tuple[str, str], list[Question]] = defaultdict(list)
        for question in split.questions:
            self.pool[question.prompt, question.answer].append(question)
        for candidates in self.pool.values():
            rng.shuffle(candidates)

    def take(self, prompt: str, answer: str) -> Question | None:
        """A question with this text and answer, or None if there is none left on an image that is free."""
        for uses in range(self.per_image):
            for question in self.pool[prompt, answer]:
                if self.used[question.image_id] == uses and question not in self.taken:
                    self.used[question.image_id] += 1
                    self.taken.add(question)
                    return question
        return None


def draw(split: Split, size: int, seed: int, per_image: int = 1) -> list[Question]:
    """``size`` balanced questions of ``split``, at most ``per_image`` on each image.

    Raises:
        ValueError: ``size`` is no multiple of four, or the split has too few images left for a cell of the balance.
    """
    if size % 4:
        raise ValueError(f"size must be a multiple of 4 to be balanced, not {size}")
    rng = random.Random(seed)
    drawer = _Drawer(split, rng, per_image)
    chosen: list[Question | None] = []
    # The rarest first, while all images are free: a given colour behind a given question string.
    for kind in ("color", "shape"):
        cells = sorted({(q.prompt, q.answer) for q in split.questions if q.type == kind})
        prompts, answers = sorted({p for p, _ in cells}), sorted({a for _, a in cells})
        uses: Counter[tuple[str, str]] = Counter()
        rng.shuffle(answers)
        for index in range(size // 4):
            answer = answers[index % len(answers)]
            ranked = sorted(
                (p for p in prompts if (p, answer) in drawer.pool),
                key=lambda p: (uses[p, answer], uses[p, ""], rng.random()),
            )
            question = next((q for p in ranked if (q := drawer.take(p, answer))), None)
            chosen.append(question)
            if question:
                uses[question.prompt, answer] += 1
                uses[question.prompt, ""] += 1
    strings = sorted({q.prompt for q in split.questions if q.type == "yes/no"})
    rng.shuffle(strings)
    for index in range(size // 4):
        prompt = strings[index % len(strings)]
        chosen += [drawer.take(prompt, "yes"), drawer.take(prompt, "no")]
    questions = [question for question in chosen if question is not None]
    if len(questions) < size:
        raise ValueError(f"the {split.name} split yields only {len(questions)} of {size} balanced questions")
    rng.shuffle(questions)
    return questions


def prior_accuracy(questions: list[Question], prior: dict[str, str]) -> dict[str, float]:
    """Accuracy of the majority answer per question string, without an image: in all, and per question type."""
    right = [(q.type, prior.get(q.prompt) == q.answer) for q in questions]
    figures = {"all": sum(ok for _, ok in right) / len(right)}
    for kind in TYPES:
        of_kind = [ok for type_, ok in right if type_ == kind]
        figures[kind] = sum(of_kind) / len(of_kind)
    return figures


def write_set(folder: Path, name: str, questions: list[Question], split: Split, beside: str = "") -> None:
    """Write ``<name>.jsonl`` and ``images/<name>/<id>.png`` under ``folder``, replacing what was there.

    Args:
        beside: a set of the same split that was written already: images that it has are not written again.
    """
    images = folder / "images" / name
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    rows = []
    for question in questions:
        file = f"{question.image_id}.png"
        there = beside if beside and (folder / "images" / beside / file).exists() else name
        if there == name:
            shutil.copyfile(split.images / file, images / file)
        row = {"image": f"images/{there}/{file}", "prompt": question.prompt}
        rows.append(json.dumps(row | {"answer": question.answer, "type": question.type}))
    (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def read_set(name: str, folder: Path = FOLDER) -> Split:
    """A written set, with the images that lie beside it."""
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = tuple(Question(row["prompt"], row["answer"], int(Path(row["image"]).stem)) for row in rows)
    return Split(name, questions, folder / "images" / name)


def readme(sets: dict[str, list[Question]], priors: dict[str, dict[str, float]], seed: int) -> str:
    """The folder's README, with the counts and prior accuracies that were measured."""
    counted = []
    for name, questions in sets.items():
        kinds, answers = Counter(q.type for q in questions), Counter(q.answer for q in questions)
        counted.append(
            f"| `{name}.jsonl` | {SIZES[name][0]} | {len(questions)} | {len({q.image_id for q in questions})} | "
            f"{kinds['yes/no']} ({answers['yes']} : {answers['no']}) | {kinds['shape']} | {kinds['color']} |"
        )
    scored = [
        f"| {name} | " + " | ".join(f"{prior[key]:.3f}" for key in ("all", *TYPES)) + " |"
        for name, prior in priors.items()
    ]
    return README.format(counts="\n".join(counted), scores="\n".join(scored), seed=seed)


def write_all(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Write all sets, the licence and the README; return each set's prior accuracy."""
    prior = majority_answers(load_split("train").questions)
    sets: dict[str, list[Question]] = {}
    for name, (split_name, size) in SIZES.items():
        split = load_split(split_name)
        if name == "test":
            others = tuple(question for question in split.questions if question not in sets["evaluation"])
            sets[name] = draw(Split(split_name, others, split.images), size, seed, per_image=2)
            write_set(folder, name, sets[name], split, beside="evaluation")
        else:
            sets[name] = draw(split, size, seed)
            write_set(folder, name, sets[name], split)
    priors = {name: prior_accuracy(questions, prior) for name, questions in sets.items()}
    licence = next(package_folder().parent.glob("easy_vqa-*.dist-info/**/LICENSE"))
    shutil.copyfile(licence, folder / "LICENSE")
    (folder / "README.md").write_text(readme(sets, priors, seed), encoding="utf-8")
    return priors


@click.command(help="Write the calibration, evaluation and test sets.")
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, show_default="the package's easy_vqa folder")
@click.option("--seed", type=int, default=0, show_default=True)
def main(out: Path, seed: int) -> None:
    """Command line of this module."""
    out.mkdir(parents=True, exist_ok=True)
    for name, prior in write_all(out, seed).items():
        click.echo(f"{name}: language prior " + ", ".join(f"{key} {value:.3f}" for key, value in prior.items()))


if __name__ == "__main__":
    main()
