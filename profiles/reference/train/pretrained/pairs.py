"""Draw the set of look-alikes: one thing, and the thing that looks most like it, at one place in every style.

It tells meaning from appearance: the same thing in two styles shares its name and not its pixels, a thing and its
look-alike in one style share much of their pixels and not their names (head attribution, section 4.3).

Decisions: who looks alike is computed from the drawings, not picked; no class belongs to two pairs; a pair shares
place, size, ground and question, so that nothing but the drawing differs.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .compose import paint
from .layout import Layout, draw_layout
from .questions import things
from .samples import QUALITY
from .vocabulary import CLASSES, STYLES

PAIRS = 12
SEED = 104
PROMPT = "What is in the picture?"


@dataclass(frozen=True)
class PairRow:
    """One line of the set's JSONL: ``scene`` numbers the pair, ``style`` names the drawings."""

    image: str
    prompt: str
    answer: str
    kind: str
    style: str
    objects: int
    object_size: int
    scene: int


def look_alikes(sprites: Tensor, count: int) -> list[tuple[int, int]]:
    """The pairs of classes whose drawings differ least, each class in one pair at most.

    Args:
        sprites: uint8 ``[styles, classes, 4, 64, 64]``.
        count: how many pairs.

    Returns:
        Class numbers, the most alike first. Drawings are compared pixel by pixel on white, over all styles.
    """
    drawn = sprites.float() / 255
    seen = (drawn[:, :, :3] * drawn[:, :, 3:] + 1 - drawn[:, :, 3:]).flatten(2)
    apart = torch.stack([torch.cdist(style, style) for style in seen]).mean(dim=0)
    first, second = torch.triu_indices(len(apart), len(apart), offset=1)
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for place in apart[first, second].argsort().tolist():
        pair = int(first[place]), int(second[place])
        if not used.intersection(pair) and len(pairs) < count:
            pairs.append(pair)
            used.update(pair)
    return pairs


def draw_pairs(sprites: Tensor, folder: Path, count: int = PAIRS) -> list[PairRow]:
    """Write ``pairs.jsonl`` and ``images/pairs/``, replacing what was there; returns the rows."""
    images = folder / "images" / "pairs"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    rows: list[PairRow] = []
    for scene, pair in enumerate(look_alikes(sprites, count)):
        place = _one_thing(rng)
        for drawn in pair:
            for style, name in enumerate(STYLES):
                layout = replace(
                    place, classes=np.where(place.classes >= 0, drawn, -1), styles=np.full_like(place.styles, style)
                )
                pixels = (paint(layout, sprites).pixels[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
                path = f"images/pairs/{len(rows)}.webp"
                Image.fromarray(pixels).save(folder / path, quality=QUALITY, method=6)
                size = round(things(layout, 0)[0].size)
                rows.append(PairRow(path, PROMPT, CLASSES[drawn].name, "name", name, 1, size, scene))
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")
    return rows


def _one_thing(rng: np.random.Generator) -> Layout:
    """A picture of a single thing."""
    while True:
        layout = draw_layout(rng, 16, 1)
        alone = np.flatnonzero(layout.amount == 1)
        if len(alone):
            return layout.take(alone[:1])
