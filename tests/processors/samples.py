"""Small pictures of several sizes, questions about them, and a clip of moving frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

#: (width, height): wide, tall, square, smaller than a tile, and with odd sides.
SIZES = ((96, 64), (60, 120), (80, 80), (30, 21), (131, 75), (64, 200))
QUESTION = "What is shown here?"


def write(folder: Path, calibration: int = 16, evaluation: int = 8) -> None:
    """``calibration.jsonl`` and ``evaluation.jsonl``; every fourth sample has two pictures of different sizes."""
    generator = np.random.default_rng(0)
    for name, count in (("calibration", calibration), ("evaluation", evaluation)):
        lines = []
        for number in range(count):
            files = [f"{name}-{number}-{i}.png" for i in range(2 if number % 4 == 3 else 1)]
            for place, file in enumerate(files):
                picture(SIZES[(number + place) % len(SIZES)], generator).save(folder / file)
            prompt = f"{QUESTION} Number {number}" if number % 2 else QUESTION
            lines.append(json.dumps({"image": files, "prompt": prompt, "answer": "a" if number % 3 else "b"}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def picture(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Coloured blocks, enlarged to a size."""
    blocks = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def clip(frames: int = 4, size: tuple[int, int] = (84, 56)) -> np.ndarray:
    """Frames ``[frames, height, width, 3]`` of a picture that moves to the right."""
    first = np.asarray(picture(size, np.random.default_rng(1)))
    return np.stack([np.roll(first, 8 * number, axis=1) for number in range(frames)])
