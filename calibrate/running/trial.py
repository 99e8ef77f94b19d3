"""Try schedules on samples: first answers, how often they are the dense model's, and how far the distributions move."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from calibrate.inputs.batches import Batch, Batches
from calibrate.running.execute import divergence, first_logits, generate
from planner.errors import RuntimeStateError
from planner.schedule import Schedule


@dataclass(frozen=True)
class Agreement:
    """How often an answer stayed the dense model's, and the mean divergence of its first token (nats)."""

    hits: int
    n: int
    kl: float = 0.0

    @property
    def misses(self) -> int:
        """Samples whose answer changed."""
        return self.n - self.hits

    @property
    def value(self) -> float:
        """Share of samples."""
        return self.hits / self.n


class TrialRunner:
    """A sample set on which schedules are executed; what the dense model says is computed once.

    Batches in which earlier schedules failed come first, so that a bad schedule is detected early.

    Attributes:
        refusals: why schedules could not be executed on these prompts; they agree on no sample.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.refusals: list[str] = []
        self._logits: dict[int, torch.Tensor] = {}
        self._answers: dict[tuple[int, int], list[str]] = {}
        self._trouble: Counter[int] = Counter()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.batches.samples)

    def first_token(self, schedule: Schedule, misses: int | None = None) -> Agreement:
        """Agreement of the first answer token.

        Args:
            misses: stop after the batch in which more samples than this have disagreed; `n` tells how far it came.
        """
        return self._agreement(lambda index, batch: self._first_tokens(index, batch, schedule), misses)

    def whole_answer(self, schedule: Schedule, max_new_tokens: int, misses: int | None = None) -> Agreement:
        """Agreement of the whole greedy answer; `misses` as in `first_token`."""

        def compare(index: int, batch: Batch) -> tuple[list[bool], float]:
            dense = self._dense_answers(index, batch, max_new_tokens)
            planned = self._generate(batch, max_new_tokens, schedule, 0)
            return [a == b for a, b in zip(dense, planned, strict=True)], 0.0

        return self._agreement(compare, misses)

    def answers(self, max_new_tokens: int, schedule: Schedule | None = None, seed: int = 0) -> list[str]:
        """Greedy answers, one per sample; dense without a schedule."""
        found: list[str] = []
        for index, batch in enumerate(self.batches):
            if schedule is None:
                found += self._dense_answers(index, batch, max_new_tokens)
            else:
                found += self._generate(batch, max_new_tokens, schedule, seed)
        return found

    def _agreement(self, compare: Callable[[int, Batch], tuple[list[bool], float]], misses: int | None) -> Agreement:
        hits, n, total = 0, 0, 0.0
        for index in sorted(range(len(self.batches)), key=lambda i: (-self._trouble[i], i)):
            try:
                same, divergences = compare(index, self.batches[index])
            except RuntimeStateError as error:
                # As a window that does not reach the image. What cannot answer every prompt is no plan.
                if error.cause not in self.refusals:
                    self.refusals.append(error.cause)
                return Agreement(0, len(self), math.inf)
            self._trouble[index] += len(same) - sum(same)
            hits, n, total = hits + sum(same), n + len(same), total + divergences
            if misses is not None and n - hits > misses:
                break
        return Agreement(hits, n, total / n)

    def _first_tokens(self, index: int, batch: Batch, schedule: Schedule) -> tuple[list[bool], float]:
        if index not in self._logits:
            self._logits[index] = first_logits(batch.model, batch.inputs)
        dense, logits = self._logits[index], first_logits(batch.model, batch.inputs, schedule)
        same = logits.argmax(dim=-1) == dense.argmax(dim=-1)
        return same.tolist(), float(divergence(dense, logits).double().sum())

    def _dense_answers(self, index: int, batch: Batch, max_new_tokens: int) -> list[str]:
        key = (index, max_new_tokens)
        if key not in self._answers:
            self._answers[key] = self._generate(batch, max_new_tokens, None, 0)
        return self._answers[key]

    def _generate(self, batch: Batch, max_new_tokens: int, schedule: Schedule | None, seed: int) -> list[str]:
        return batch.encoder.decode(generate(batch.model, batch.inputs, max_new_tokens, schedule, seed))
