"""Samples as encoded batches on the model's device, and a whole set of them that many schedules run over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from calibrate.inputs.encode import Encoder, Inputs, to_device
from calibrate.inputs.samples import Sample, SampleSet

#: Encoded inputs are kept up to this many bytes, and made again for each pass beyond.
CACHE_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True)
class Batch:
    """Some samples of a set, encoded and on the model's device."""

    ids: tuple[int, ...]
    samples: tuple[Sample, ...]
    inputs: Inputs
    model: Any
    encoder: Encoder
    sample_set: SampleSet

    def lengths(self) -> torch.Tensor:
        """Tokens of each sample before the image, of the image, and after its first token: ``[B, 3]``."""
        ids = self.inputs["input_ids"]
        visual = torch.isin(ids, self.encoder.visual_ids.to(ids.device))
        valid = self.inputs.get("attention_mask", torch.ones_like(ids)).bool()
        return segments(visual, valid).sum(dim=2)


#: What is done with some samples happens inside: `calibrate.progress.Progress.step` of a task.
Watch = Callable[[int], AbstractContextManager[None]]


def unwatched(samples: int) -> AbstractContextManager[None]:
    """Nobody counts."""
    return nullcontext()


class Batches:
    """Batches of consecutive samples on the model's device, in memory of `CACHE_LIMIT_BYTES` plus one batch.

    Args:
        watch: counts samples as passes go over them.
    """

    def __init__(
        self, samples: SampleSet, encoder: Encoder, model: Any, batch_size: int, watch: Watch = unwatched
    ) -> None:
        self.samples, self.encoder, self.model, self.batch_size = samples, encoder, model, batch_size
        self.watch = watch
        self._kept: dict[tuple[int, ...], Batch] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.chunks(range(len(self.samples)))

    def __getitem__(self, index: int) -> Batch:
        start = index * self.batch_size
        return self.of(tuple(range(start, min(start + self.batch_size, len(self.samples)))))

    def of(self, ids: tuple[int, ...]) -> Batch:
        """Some samples as one batch."""
        if ids in self._kept:
            return self._kept[ids]
        chosen = tuple(self.samples[i] for i in ids)
        inputs = self.place(self.encoder(chosen))
        batch = Batch(ids, chosen, inputs, self.model, self.encoder, self.samples)
        size = sum(tensor.nbytes for tensor in batch.inputs.values())
        if self._kept_bytes + size <= CACHE_LIMIT_BYTES:
            self._kept[ids] = batch
            self._kept_bytes += size
        return batch

    def chunks(self, indices: Sequence[int]) -> Iterator[Batch]:
        """Samples in the order of their indices, in batches of the usual size."""
        for start in range(0, len(indices), self.batch_size):
            ids = tuple(indices[start : start + self.batch_size])
            with self.watch(len(ids)):
                yield self.of(ids)

    def regrouped(self, batch_size: int) -> Batches:
        """The same samples in batches of another size."""
        return Batches(self.samples, self.encoder, self.model, batch_size, self.watch)

    def watched(self, watch: Watch) -> Batches:
        """The same batches, counted by another."""
        other = Batches(self.samples, self.encoder, self.model, self.batch_size, watch)
        other._kept, other._kept_bytes = self._kept, self._kept_bytes
        return other

    def place(self, inputs: Inputs) -> Inputs:
        """Inputs on the model's device."""
        return to_device(inputs, self.model)

    def shapes(self) -> list[tuple[int, int, int]]:
        """Tokens of each sample before the image, of the image, and after it."""
        return [tuple(lengths) for i in range(len(self)) for lengths in self[i].lengths().tolist()]


def segments(visual: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Masks ``[B, 3, n]`` of text before the image, visual tokens, and text after the first visual token.

    Args:
        visual, valid: ``[B, n]``, visual tokens and what is no padding.
    """
    begun = visual.cumsum(dim=1) > 0
    return torch.stack([valid & ~begun, visual, valid & begun & ~visual], dim=1)
