"""Try schedules on samples: first answers, how often they are the dense model's, and how far the distributions move."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calibrate.batches import Batches
from calibrate.execute import divergence, first_logits, generate
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


class Bench:
    """A sample set on which schedules are executed; what the dense model says is computed once."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._dense: list[torch.Tensor] | None = None
        self._answers: list[str] | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.batches.samples)

    def first_token(self, schedule: Schedule, misses: int | None = None) -> Agreement:
        """Agreement of the first answer token.

        Args:
            misses: stop after the batch in which more samples than this have disagreed; `n` tells how far it came.
        """
        hits, n, total = 0, 0, 0.0
        for batch, dense in zip(self.batches, self._dense_logits(), strict=True):
            logits = first_logits(self.batches.model, batch.inputs, schedule)
            hits += int((logits.argmax(dim=-1) == dense.argmax(dim=-1)).sum())
            n += len(batch.ids)
            total += float(divergence(dense, logits).double().sum())
            if misses is not None and n - hits > misses:
                break
        return Agreement(hits, n, total / n)

    def answers(self, max_new_tokens: int, schedule: Schedule | None = None, seed: int = 0) -> list[str]:
        """Greedy answers, one per sample; the dense ones (no schedule) are kept."""
        if schedule is None and self._answers is not None:
            return self._answers
        found: list[str] = []
        for batch in self.batches:
            ids = generate(self.batches.model, batch.inputs, max_new_tokens, schedule, seed)
            found += self.batches.encoder.decode(ids)
        if schedule is None:
            self._answers = found
        return found

    def whole_answer(self, schedule: Schedule, max_new_tokens: int, seed: int = 0) -> Agreement:
        """Agreement of the whole greedy answer."""
        dense, planned = self.answers(max_new_tokens), self.answers(max_new_tokens, schedule, seed)
        return Agreement(sum(a == b for a, b in zip(dense, planned, strict=True)), len(dense))

    def _dense_logits(self) -> list[torch.Tensor]:
        if self._dense is None:
            self._dense = [first_logits(self.batches.model, batch.inputs) for batch in self.batches]
        return self._dense
