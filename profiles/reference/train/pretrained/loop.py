"""The loop that both stages of training run in: seeded by step, resumable, saved often.

Decisions: a step's data depend on the seed and the step's number alone, so a run that was cut off goes on as if it had
not been; schedules count steps; a limit in seconds only ends a run early, and what is there is saved then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
Figures = dict[str, Tensor]
WARMUP = 100
LOG_EVERY = 20
PILOT = 15
LAST_LR = 0.02  # share of the peak


class Stream(Dataset[T], Generic[T]):
    """One item per step, made by ``make`` from a generator that is seeded by the step."""

    def __init__(self, make: Callable[[np.random.Generator], T], seed: int, steps: range) -> None:
        self.make, self.seed, self.steps = make, seed, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> T:
        return self.make(np.random.default_rng((self.seed, self.steps[index])))


def _same(item: T) -> T:
    return item


def stream(make: Callable[[np.random.Generator], T], seed: int, steps: range, workers: int) -> Iterator[T]:
    """The items of some steps, made ahead by worker processes where there are any."""
    data: Stream[T] = Stream(make, seed, steps)
    ahead = 4 if workers else None
    return iter(DataLoader(data, batch_size=None, collate_fn=_same, num_workers=workers, prefetch_factor=ahead))


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step, from 0: warm-up, then a cosine down to ``LAST_LR``."""
    warmup = min(WARMUP, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return LAST_LR + (1 - LAST_LR) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass
class Clock:
    """Time since the run began, and the limit at which it ends early; None is no limit."""

    limit: float | None = None
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self.start

    @property
    def over(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.seconds >= self.limit


@dataclass
class Stage:
    """One stage of training.

    Attributes:
        name: as logs call it.
        module: whose parameters are trained.
        rates: peak learning rate by the beginning of a parameter's name; the first that fits counts.
        steps: number of optimiser steps.
        batch: pictures a step.
        state: file that a run is resumed from.
        save: called whenever ``state`` was written.
        decay: weight decay.
        seconds: choose ``steps`` so that the stage takes about so long on this machine.
        save_every: steps between two times.
    """

    name: str
    module: nn.Module
    rates: dict[str, float]
    steps: int
    batch: int
    state: Path
    save: Callable[[], None]
    decay: float = 0.0
    seconds: float | None = None
    save_every: int = 200

    def _groups(self) -> list[dict[str, Any]]:
        named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        rates = [next(lr for start, lr in self.rates.items() if name.startswith(start)) for name, _ in named]
        return [{"params": [p], "lr": lr, "peak": lr} for (_, p), lr in zip(named, rates, strict=True)]

    def run(
        self,
        items: Callable[[range], Iterator[T]],
        loss: Callable[[T, int], tuple[Tensor, Figures]],
        clock: Clock,
        log: Callable[..., None],
    ) -> int:
        """Train from where ``state`` left off; returns the number of steps that are done in all.

        A run that is resumed keeps the number of steps that it began with.

        Args:
            items: the data of some steps.
            loss: of one item at one step, and figures to log.
            clock: of the run.
            log: called with a row of the training curve every 20 steps.
        """
        groups = self._groups()
        parameters = [p for group in groups for p in group["params"]]
        device = parameters[0].device
        state = torch.load(self.state, map_location="cpu", weights_only=True) if self.state.is_file() else None
        if state is not None:
            self.steps = state["steps"]
        elif self.seconds is not None:
            self.steps = max(1, int(self.seconds / self._pace(items(range(PILOT)), loss)))
        optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.98), weight_decay=self.decay, fused=True if device.type == "cuda" else None
        )
        first = 0
        if state is not None:
            first = int(state["step"])
            self.module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
        seen: list[Figures] = []
        since, at = first, time.perf_counter()
        done = first
        for step, item in enumerate(items(range(first, self.steps)), start=first):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step, self.steps)
            value, figures = loss(item, step)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            seen.append({"loss": value.detach(), **figures})
            done = step + 1
            if done % LOG_EVERY == 0 or done == self.steps or done == 1:
                means = {name: torch.stack([f[name] for f in seen]).mean().item() for name in seen[0]}
                now = time.perf_counter()
                pace = (done - since) * self.batch / (now - at)
                since, at, seen = done, now, []
                row = {"phase": self.name, "step": done, **means, "lr": optimizer.param_groups[0]["lr"]}
                log(**row, pictures_per_second=pace, seconds=clock.seconds)
            if done % self.save_every == 0:
                self._save(done, optimizer)
            if clock.over:
                break
        self._save(done, optimizer)
        return done

    def _pace(self, items: Iterator[T], loss: Callable[[T, int], tuple[Tensor, Figures]]) -> float:
        """Seconds a step takes here, from a few that change nothing; the first ones warm up."""
        start = 0.0
        for number, item in enumerate(items):
            value, _ = loss(item, number)
            value.backward()
            value.item()
            if number == PILOT // 3:
                start = time.perf_counter()
        self.module.zero_grad()
        return (time.perf_counter() - start) / (PILOT - 1 - PILOT // 3)

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        content = {
            "step": step,
            "steps": self.steps,
            "module": self.module.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        self.state.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state.with_suffix(".partial")
        torch.save(content, partial)
        partial.replace(self.state)
        self.save()
