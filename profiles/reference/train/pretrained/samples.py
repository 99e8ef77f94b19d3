"""Draw the sample sets: pictures, questions and answers, as files.

Decisions: two questions a picture to calibrate on, since a proof counts one a picture, else four; all kinds of
questions equally often; as many "yes" as "no"; the held-out style has a set of its own. Pictures are WebP at high
quality, some three kilobytes each.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .compose import paint
from .layout import draw_layout
from .questions import Asker, Question
from .vocabulary import HELD_OUT_STYLE, QUESTION_KINDS, STYLES, TRAINED_STYLES

QUALITY = 90
TRIES = 12


@dataclass(frozen=True)
class SetPlan:
    """One sample set: number of pictures, questions about each, styles, seed."""

    pictures: int
    questions: int
    styles: tuple[str, ...]
    seed: int


SETS = {
    "calibration": SetPlan(320, 2, TRAINED_STYLES, 101),
    "evaluation": SetPlan(300, 4, TRAINED_STYLES, 102),
    "held_out": SetPlan(100, 4, (HELD_OUT_STYLE,), 103),
}


@dataclass(frozen=True)
class Row:
    """One line of a set's JSONL; ``object_size`` is the side in pixels of the thing asked about, 0 for none."""

    image: str
    prompt: str
    answer: str
    kind: str
    style: str
    objects: int
    object_size: int


class _Balance:
    """Chooses kinds that are behind, and the side of yes/no that is."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.said: Counter[str] = Counter()

    def take(self, asker: Asker, questions: int, rng: np.random.Generator) -> list[Question]:
        """Questions about one picture, each of another kind."""
        order = sorted(QUESTION_KINDS, key=lambda kind: (self.kinds[kind], rng.random()))
        chosen: list[Question] = []
        for kind in order:
            question = self._wanted(asker, kind)
            if question is not None and len(chosen) < questions:
                chosen.append(question)
                self.kinds[kind] += 1
                self.said[question.answer] += 1
        return chosen

    def _wanted(self, asker: Asker, kind: str) -> Question | None:
        behind = "yes" if self.said["yes"] <= self.said["no"] else "no"
        question = None
        for _ in range(TRIES):
            question = asker.ask(kind)
            if question is None or question.answer not in ("yes", "no") or question.answer == behind:
                break
        return question


def draw_set(name: str, plan: SetPlan, sprites: Tensor, folder: Path) -> list[Row]:
    """Write one set: ``<name>.jsonl`` and ``images/<name>/``, replacing what was there; returns its rows."""
    images = folder / "images" / name
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    rng, balance, rows = np.random.default_rng(plan.seed), _Balance(), []
    layout = draw_layout(rng, plan.pictures, tuple(STYLES.index(style) for style in plan.styles))
    pixels = torch.cat([paint(layout.take([i]), sprites).pixels for i in range(plan.pictures)])
    for number, picture in enumerate((pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()):
        path = f"images/{name}/{number}.webp"
        Image.fromarray(picture).save(folder / path, quality=QUALITY, method=6)
        style, amount = STYLES[layout.styles[number]], int(layout.amount[number])
        for asked in balance.take(Asker(layout, number, rng), plan.questions, rng):
            rows.append(Row(path, asked.prompt, asked.answer, asked.kind, style, amount, round(asked.size)))
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return rows


def draw_all(sprites: Tensor, folder: Path) -> dict[str, list[Row]]:
    """Write all sets."""
    return {name: draw_set(name, plan, sprites, folder) for name, plan in SETS.items()}


def read_set(name: str, folder: Path) -> list[Row]:
    """The rows of a written set."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines]


def load_pictures(rows: list[Row], folder: Path) -> dict[str, Tensor]:
    """The pictures of some rows by path: uint8 ``[3, 240, 240]``."""
    found = {}
    for path in dict.fromkeys(row.image for row in rows):
        with Image.open(folder / path) as opened:
            found[path] = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
    return found
