"""Judge a model by the sample sets: every answer exactly, by kind of question, style, number and size of things.

Decisions: the weights as they are shipped (bfloat16) answer; an answer counts when greedy decoding would give it, end
included, which one packed pass tells: every token must be the likeliest behind the right ones before it. What needs no
picture is measured beside: a gray picture, no picture at all, and the commonest answer of each kind.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..packing import Packer
from .build import PROMPT, TEXT_PROMPT
from .compose import IGNORED, VISUAL_TOKENS
from .language import Student
from .layout import IMAGE_SIZE
from .samples import Row, load_pictures, read_set
from .vocabulary import QUESTION_KINDS

SMALL, LARGE = 60, 85  # pixels between which a thing counts as middling
GRAY = 0.5


@dataclass(frozen=True)
class Verdict:
    """How one question was answered: exactly or not, and which share of the answer's tokens was right."""

    row: Row
    exact: bool
    tokens: float


def grouped(rows: list[Row]) -> list[list[Row]]:
    """Rows by picture."""
    by_picture: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_picture[row.image].append(row)
    return list(by_picture.values())


def _parts(groups: list[list[Row]], size: int) -> Iterable[list[list[Row]]]:
    remaining = iter(groups)
    while part := list(islice(remaining, size)):
        yield part


@torch.no_grad()
def judge(
    student: Student, tokenizer: Any, rows: list[Row], pictures: Callable[[str], Tensor] | None, batch: int = 32
) -> list[Verdict]:
    """Answers to all rows.

    Args:
        student: the model.
        tokenizer: its tokenizer.
        rows: what is asked.
        pictures: gives a picture, 0 to 1 ``[3, 240, 240]``, by its path; None asks without any picture.
        batch: pictures at a time.
    """
    device = student.decoder.embeddings.device
    packer = Packer(tokenizer, PROMPT, VISUAL_TOKENS, 64) if pictures else Packer(tokenizer, TEXT_PROMPT, 0, 64)
    verdicts = []
    for part in _parts(grouped(rows), batch):
        pack = packer.pack([[(row.prompt, row.answer) for row in group] for group in part]).to(device)
        pixels = torch.stack([pictures(group[0].image) for group in part]).to(device) if pictures else None
        hidden = student.read(pixels, pack)
        asked = pack.labels != IGNORED
        hits = torch.ones_like(asked)
        hits[asked] = student.decoder.logits(hidden[asked]).argmax(-1) == pack.labels[asked]
        hits, asked, segment = hits.cpu(), asked.cpu(), pack.segment.cpu()
        for index, group in enumerate(part):
            for number, row in enumerate(group, start=1):
                own = hits[index][asked[index] & (segment[index] == number)]
                verdicts.append(Verdict(row, bool(own.all()), own.float().mean().item()))
    return verdicts


def share(verdicts: list[Verdict]) -> float:
    """Share that was answered exactly."""
    return round(sum(verdict.exact for verdict in verdicts) / len(verdicts), 4)


def by(verdicts: list[Verdict], key: Callable[[Row], Any]) -> dict[str, float]:
    """Share answered exactly, by a property of the row."""
    groups: dict[Any, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[key(verdict.row)].append(verdict)
    return {str(name): share(groups[name]) for name in sorted(groups)}


def _size(row: Row) -> str:
    if not row.object_size:
        return "none"
    return "small" if row.object_size < SMALL else "large" if row.object_size >= LARGE else "medium"


def figures(verdicts: list[Verdict]) -> dict[str, Any]:
    """All break-downs of one set."""
    kinds = by(verdicts, lambda row: row.kind)
    described = [verdict.tokens for verdict in verdicts if verdict.row.kind == "description"]
    return {
        "samples": len(verdicts),
        "all": share(verdicts),
        "kind": {kind: kinds[kind] for kind in QUESTION_KINDS if kind in kinds},
        "style": by(verdicts, lambda row: row.style),
        "objects": by(verdicts, lambda row: row.objects),
        "object_size": by(verdicts, _size),
        "exact": "".join(str(int(verdict.exact)) for verdict in verdicts),
        "description_tokens": round(sum(described) / len(described), 4) if described else None,
    }


def majority(rows: list[Row]) -> dict[str, Any]:
    """Share that the commonest answer of each kind of question gets, in the set's own counts."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[row.kind][row.answer] += 1
    right = {kind: counter.most_common(1)[0][1] for kind, counter in answers.items()}
    kinds = {kind: round(right[kind] / answers[kind].total(), 4) for kind in QUESTION_KINDS if kind in answers}
    return {"all": round(sum(right.values()) / len(rows), 4), "kind": kinds}


def evaluate(student: Student, tokenizer: Any, folder: Path, pictures: int | None = None) -> dict[str, Any]:
    """Figures of the evaluation set, of the held-out style, and of what needs no picture.

    Args:
        student: the model.
        tokenizer: its tokenizer.
        folder: of the sample sets.
        pictures: judge by the first so many of each set only.
    """
    result: dict[str, Any] = {}
    gray = torch.full((3, IMAGE_SIZE, IMAGE_SIZE), GRAY)
    for name in ("evaluation", "held_out"):
        rows = [row for group in grouped(read_set(name, folder))[:pictures] for row in group]
        known = {path: picture / 255 for path, picture in load_pictures(rows, folder).items()}
        result[name] = figures(judge(student, tokenizer, rows, known.__getitem__))
        if name == "evaluation":
            result["blank image"] = figures(judge(student, tokenizer, rows, lambda path: gray))
            result["no image"] = figures(judge(student, tokenizer, rows, None))
            result["majority"] = majority(rows)
    return result
