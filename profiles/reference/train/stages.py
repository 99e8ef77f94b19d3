"""The three stages of training; each starts from the folder that the one before it saved.

Decisions: counted in steps, never in minutes; each stage seeds its own generators, so that it gives the same weights
whether it runs alone or after the others; the shipped folders hold float16, and the next stage starts from those.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoProcessor, LlavaForConditionalGeneration

from .build import build_model, build_processor, save_model, save_processor
from .data import load_split
from .decoder import PLAIN, WINDOWED, Features, train_decoder
from .packing import Packer
from .tower import load_pixels, patch_labels, tower_features, train_tower

STEPS = {"tower": 600, "plain": 2000, "windowed": 800}
BEFORE = {"plain": "tower", "windowed": "plain"}
COLUMNS = ("phase", "step", "loss", "accuracy", "lr", "seconds")


@dataclass
class LearningCurve:
    """The training curve: rows of ``COLUMNS``, with the seconds since the stage began."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def __call__(self, **row: Any) -> None:
        """Append one row."""
        rounded = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
        self.rows.append(rounded | {"seconds": round(time.perf_counter() - self.start, 1)})

    def save(self, path: Path, before: Path | None) -> None:
        """Write the curve as CSV, behind the one of the stage before where there is one."""
        earlier = before.read_text(encoding="utf-8").splitlines()[1:] if before else []
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            file.writelines(f"{line}\n" for line in earlier)
            writer.writerows(self.rows)


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def run_stage(
    stage: str, out: Path, device: torch.device, steps_scale: float = 1.0, seed: int = 0, images: int | None = None
) -> Path:
    """Train one stage and save it as ``out/<stage>``; returns that folder.

    Args:
        stage: ``tower``, ``plain`` or ``windowed``.
        out: folder that holds the stage before.
        device: where to train.
        steps_scale: factor on the stage's number of steps.
        seed: of every random generator.
        images: train on the first so many images only.

    Raises:
        FileNotFoundError: the stage before has not been saved under ``out``.
    """
    curve = LearningCurve()
    torch.manual_seed(seed)
    steps = max(1, round(STEPS[stage] * steps_scale))
    split = load_split("train")
    before = out / BEFORE[stage] if stage in BEFORE else None
    if before is None:
        processor = build_processor(split)
        model = build_model(processor.tokenizer)
    else:
        if not (before / "config.json").is_file():
            raise FileNotFoundError(
                f"{stage} starts from {before}, which is missing: run the {before.name} stage first"
            )
        processor = AutoProcessor.from_pretrained(before)
        model = LlavaForConditionalGeneration.from_pretrained(before, dtype=torch.float32)
    model.to(device).train()
    split = split.first(images)
    ids = list(split.by_image())
    pixels = load_pixels(processor.image_processor, split.images, ids)
    if stage == "tower":
        train_tower(model, pixels, patch_labels(pixels, split, ids), steps, curve)
    else:
        straight = tower_features(model, pixels, torch.float16)
        features = Features.of(straight, tower_features(model, pixels.flip(-1), torch.float16), ids)
        packer = Packer(processor.tokenizer)
        train_decoder(model, packer, features, split, PLAIN if stage == "plain" else WINDOWED, steps, seed, curve)
    folder = out / stage
    folder.mkdir(parents=True, exist_ok=True)
    # Only the intermediate stage keeps full precision: nobody uses it but the next one.
    model.to("cpu", torch.float32 if stage == "tower" else torch.float16).eval().requires_grad_(True)
    save_model(model, folder)
    save_processor(processor, folder)
    curve.save(folder / "training_log.csv", before / "training_log.csv" if before else None)
    facts = json.loads((before / "training.json").read_text(encoding="utf-8")) if before else {}
    facts[stage] = {
        "steps": steps,
        "seed": seed,
        "seconds": round(time.perf_counter() - curve.start),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder
