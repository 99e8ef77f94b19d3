"""Stage two: low-rank factors of the language model and the projector learn to answer; the tower is frozen.

Decisions: one picture a packed sequence, its questions as segments, as many as fit a fixed length, so that every step
has the same shape; cross-entropy on answers and their end only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..packing import Pack, Packer
from .compose import IGNORED, paint
from .decoder import Decoder
from .layout import Layout, draw_layout
from .loop import Figures
from .questions import Asker, Question
from .tower import Eyes
from .vocabulary import TRAINED_STYLES

LENGTH = 704  # tokens of a packed sequence: 403 of prefix and image, the rest questions
#: How often each kind of question is drawn, relative to the others.
KINDS = {
    "name": 1.0,
    "kind": 0.8,
    "count": 1.5,
    "where": 1.2,
    "relation": 1.6,
    "yes/no": 2.0,
    "description": 0.6,
    "irrelevant context": 1.2,
    "relevant context": 1.2,
}


@dataclass(frozen=True)
class Task:
    """The pictures of one step and their packed questions."""

    layout: Layout
    pack: Pack


class TaskMaker:
    """Draws tasks.

    Args:
        packer: of the model.
        batch: pictures a task.
        length: tokens that a sequence may have.
    """

    def __init__(self, packer: Packer, batch: int, length: int = LENGTH) -> None:
        self.packer, self.batch, self.length = packer, batch, length

    def __call__(self, rng: np.random.Generator) -> Task:
        """One task; pictures in the trained styles."""
        layout = draw_layout(rng, self.batch, len(TRAINED_STYLES))
        groups = [[(q.prompt, q.answer) for q in self.questions(layout, row, rng)] for row in range(self.batch)]
        return Task(layout, self.packer.pack(groups))

    def questions(self, layout: Layout, row: int, rng: np.random.Generator) -> list[Question]:
        """Different questions about one picture until the next would not fit; at least one."""
        room = self.length - len(self.packer.prefix)
        chosen: dict[str, Question] = {}
        repeats = 0
        for question in Asker(layout, row, rng).stream(KINDS):
            repeats += question.prompt in chosen
            size = self.packer.length(question.prompt, question.answer)
            if chosen and (size > room or repeats > 16):
                break
            if question.prompt not in chosen:
                chosen[question.prompt] = question
                room -= size
        return list(chosen.values())


class Student(nn.Module):
    """What stage two trains: projector and low-rank factors; the tower is used as it is."""

    def __init__(self, eyes: Eyes, decoder: Decoder) -> None:
        super().__init__()
        eyes.vision_tower.requires_grad_(False)
        self.eyes, self.decoder = eyes, decoder

    def read(self, pixels: Tensor | None, pack: Pack) -> Tensor:
        """Final hidden states of packed questions about pictures; None is no picture."""
        if pixels is None:
            return self.decoder.read(pack, None)
        dtype = self.decoder.dtype
        with torch.autocast(pixels.device.type, dtype, enabled=dtype == torch.bfloat16):
            with torch.no_grad():
                features = self.eyes.features(pixels)
            visual = self.eyes.multi_modal_projector(features)
        return self.decoder.read(pack, visual)


class LanguageLoss:
    """The loss of stage two.

    Args:
        student: what is trained.
        sprites: on the device that paints.
        end: token that ends an answer.
    """

    def __init__(self, student: Student, sprites: Tensor, end: int) -> None:
        self.student, self.sprites, self.end = student, sprites, end

    def __call__(self, task: Task, step: int) -> tuple[Tensor, Figures]:
        """Loss of one task; and the share of right answer tokens, their ends left out."""
        pack = task.pack.to(self.sprites.device)
        pixels = paint(task.layout, self.sprites, torch.Generator().manual_seed(step)).pixels
        hidden = self.student.read(pixels, pack)
        asked = pack.labels != IGNORED
        logits, expected = self.student.decoder.logits(hidden[asked]), pack.labels[asked]
        loss = F.cross_entropy(logits, expected)
        answer = expected != self.end
        return loss, {"accuracy": (logits.detach().argmax(-1) == expected)[answer].float().mean()}
