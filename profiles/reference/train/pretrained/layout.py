"""Where things lie in a picture, and what it looks like: drawn at random, whole batches at once.

Decisions: every thing lies in a ninth of the picture of its own, anywhere in it but for a narrow band along the inner
borders, so that "where" has one answer; things hardly touch; numbers of things and sizes vary. NumPy draws, since a
picture's questions are made from the same numbers on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .vocabulary import CLASSES

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

IMAGE_SIZE = 240
CELL = IMAGE_SIZE // 3
BORDER = 6  # pixels along a ninth's border where no centre lies
SLOTS = 9
SMALLEST = 44.0  # pixels
#: Numbers of things in a picture, how often each is drawn, and the largest size of a thing beside so many.
AMOUNTS = {1: (0.14, 130.0), 2: (0.2, 116.0), 3: (0.22, 104.0), 4: (0.22, 92.0), 6: (0.12, 76.0), 9: (0.1, 66.0)}
REPEATED = 0.4  # share of the pictures (of two things and more) that show one class several times
TRIALS = 8


@dataclass(frozen=True)
class Layout:
    """``B`` pictures; slots from ``amount`` on are empty.

    Attributes:
        amount: ``[B]``, number of things.
        classes: ``[B, 9]``, index into ``CLASSES``; -1 where empty.
        cells: ``[B, 9]``, 0 to 8, row by row; no two things of a picture share one.
        centers: ``[B, 9, 2]``, x and y in pixels.
        sizes: ``[B, 9]``, side of the drawing in pixels.
        styles: ``[B]``, index into ``STYLES``.
        angles: ``[B, 9]``, radians.
        mirrored: ``[B, 9]``, 1 or -1.
        grounds: ``[B, 2, 3]``, two colours from 0 to 1 that the ground runs between.
        direction: ``[B]``, radians, in which it does.
        texture: ``[B, 6, 6]``, a coarse relief on it.
    """

    amount: Ints
    classes: Ints
    cells: Ints
    centers: Floats
    sizes: Floats
    styles: Ints
    angles: Floats
    mirrored: Floats
    grounds: Floats
    direction: Floats
    texture: Floats

    def __len__(self) -> int:
        return len(self.amount)

    def take(self, rows: list[int] | Ints) -> Layout:
        """Some of the pictures."""
        return Layout(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def _draw_classes(rng: np.random.Generator, amount: Ints) -> Ints:
    batch = len(amount)
    classes = rng.random((batch, len(CLASSES))).argsort(axis=1)[:, :SLOTS]
    times = rng.integers(2, np.clip(amount, 2, 6) + 1)
    times = np.where((rng.random(batch) < REPEATED) & (amount > 1), times, 1)
    slot = np.arange(SLOTS)
    classes = np.where(slot < times[:, None], classes[:, :1], classes)
    return np.where(slot < amount[:, None], classes, -1)


def _place(rng: np.random.Generator, amount: Ints, cells: Ints, sizes: Floats) -> tuple[Floats, Floats]:
    """Centres, and sizes shrunk where things would still overlap: the first of several trials in which none do."""
    batch = len(amount)
    corner = np.stack([cells % 3, cells // 3], axis=-1) * float(CELL)
    half = sizes[..., None] / 2
    low = np.maximum(corner + BORDER, half)
    high = np.minimum(corner + CELL - BORDER, IMAGE_SIZE - half)
    trials = low[:, None] + rng.random((batch, TRIALS, SLOTS, 2)) * (high - low)[:, None]
    apart = np.linalg.norm(trials[:, :, :, None] - trials[:, :, None], axis=-1)
    filled = np.arange(SLOTS) < amount[:, None]
    pair = filled[:, :, None] & filled[:, None] & ~np.eye(SLOTS, dtype=bool)
    needed = (sizes[:, :, None] + sizes[:, None]) / 2
    room = np.where(pair[:, None], apart / needed[:, None], 9.0).min(axis=(2, 3))
    best = np.where((room >= 1).any(axis=1), (room >= 1).argmax(axis=1), room.argmax(axis=1))
    row = np.arange(batch)
    factor = np.minimum(room[row, best], 1.0)[:, None]
    return trials[row, best].astype(np.float32), np.maximum(sizes * factor, SMALLEST * 0.9).astype(np.float32)


def draw_layout(rng: np.random.Generator, batch: int, styles: int | tuple[int, ...]) -> Layout:
    """``batch`` pictures.

    Args:
        rng: source of randomness.
        batch: number of pictures.
        styles: number of styles to draw from, or the styles themselves.
    """
    amounts = np.array(list(AMOUNTS))
    amount = rng.choice(amounts, size=batch, p=[share for share, _ in AMOUNTS.values()])
    largest = np.array([AMOUNTS.get(n, (0.0, SMALLEST))[1] for n in range(SLOTS + 1)])[amount]
    sizes = SMALLEST * (largest / SMALLEST)[:, None] ** rng.random((batch, SLOTS))
    cells = rng.random((batch, SLOTS)).argsort(axis=1)
    centers, sizes = _place(rng, amount, cells, sizes)
    ground = rng.uniform(0.1, 1.0, size=(batch, 1, 3))
    ground = ground + (rng.random((batch, 1, 1)) * 0.7) * (ground.mean(axis=2, keepdims=True) - ground)
    grounds = np.clip(np.concatenate([ground, ground + rng.normal(0, 0.12, (batch, 1, 3))], axis=1), 0, 1)
    known = np.arange(styles) if isinstance(styles, int) else np.array(styles)
    return Layout(
        amount=amount.astype(np.int64),
        classes=_draw_classes(rng, amount),
        cells=cells,
        centers=centers,
        sizes=sizes,
        styles=rng.choice(known, size=batch),
        angles=rng.normal(0, 0.12, (batch, SLOTS)).astype(np.float32),
        mirrored=rng.choice(np.array([-1.0, 1.0], dtype=np.float32), (batch, SLOTS)),
        grounds=grounds.astype(np.float32),
        direction=rng.uniform(0, 2 * np.pi, batch).astype(np.float32),
        texture=rng.normal(0, 0.03, (batch, 6, 6)).astype(np.float32),
    )
