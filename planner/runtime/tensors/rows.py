"""Which rows of the prompt a stream of hidden states holds.

A stream starts as the whole prompt, ``[B, n]``. When rows leave it, what remains is packed to the right, so the last
valid row of every sample is the last row; where samples keep different numbers, the slots on the left are empty. Rows
stay in prompt order and keep their original index, from which their position embedding and their part of the mask are
taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a prompt of `length` tokens.

    Attributes:
        index: ``[B, m]`` original index of each slot, -1 where the slot is empty.
        counts: rows held per sample, known on the host without asking the device.
        length: tokens of the prompt, padding included.
        whole: True while nothing has left: slot i is row i.
    """

    index: Tensor
    counts: tuple[int, ...]
    length: int
    whole: bool = False
    #: What has been derived so far. A plain table, since compilers trace it, and no cached property.
    _derived: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @staticmethod
    def all(batch: int, length: int, device: torch.device) -> Rows:
        """Every row of the prompt."""
        index = torch.arange(length, device=device).expand(batch, length)
        return Rows(index, (length,) * batch, length, whole=True)

    @staticmethod
    def of(mask: Tensor, counts: tuple[int, ...]) -> Rows:
        """The rows that `mask` ``[B, n]`` selects; `counts` are its sums."""
        length, width = mask.shape[1], max(counts)
        order = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)[:, length - width :]
        if min(counts) != width:
            slot = torch.arange(width, device=mask.device)
            first = width - torch.tensor(counts, device=mask.device)
            order = order.masked_fill(slot < first[:, None], -1)
        return Rows(order, counts, length)

    @staticmethod
    def most(mask: Tensor, width: int) -> Rows:
        """The rows that `mask` ``[B, n]`` selects, at most `width` a sample: where nobody has counted on the host."""
        order = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)[:, mask.shape[1] - width :]
        return Rows(torch.where(mask.gather(1, order), order, -1), (width,) * len(mask), mask.shape[1])

    @property
    def width(self) -> int:
        """Slots per sample."""
        return int(self.index.shape[1])

    @property
    def ragged(self) -> bool:
        """True when some slot is empty."""
        return min(self.counts) != self.width

    @property
    def filled(self) -> Tensor:
        """``[B, m]``: the slots that hold a row."""
        return self._once("filled", lambda: self.index >= 0)

    @property
    def mask(self) -> Tensor:
        """``[B, n]``: the rows that are held."""
        return self._once("mask", lambda: self.spread(self.filled))

    @property
    def slots(self) -> Tensor:
        """``[B, n]``: the slot that holds each row (0 for rows that are not held)."""
        return self._once("slots", self._slots)

    def _once(self, name: str, derive: Callable[[], Tensor]) -> Tensor:
        if name not in self._derived:
            self._derived[name] = derive()
        return self._derived[name]

    def _slots(self) -> Tensor:
        batch, width = self.index.shape
        slots = torch.zeros(batch, self.length + 1, dtype=torch.long, device=self.index.device)
        target = torch.where(self.filled, self.index, self.length)
        slots.scatter_(1, target, torch.arange(width, device=self.index.device).expand(batch, width))
        return slots[:, :-1]

    def slots_of(self, other: Rows) -> Tensor:
        """``[B, other.width]``: where in this stream each row of `other` is (its empty slots point at some row)."""
        return self.slots.gather(1, other.index.clamp(min=0))

    def spread(self, flags: Tensor) -> Tensor:
        """Flags given per slot, ``[B, m]``, per prompt row: ``[B, n]``, False for rows that are not held."""
        return self.per_row(flags, 0)  # not False, which no trace can hold

    def per_row(self, values: Tensor, elsewhere: float) -> Tensor:
        """Values given per slot, ``[B, m]``, per prompt row: ``[B, n]``, `elsewhere` for rows that are not held."""
        # An empty slot writes to a column of its own, which is cut off.
        wide = values.new_full((values.shape[0], self.length + 1), elsewhere)
        return wide.scatter_(1, torch.where(self.filled, self.index, self.length), values)[:, :-1]

    def restore(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[B, n, d]`` of the whole prompt from those of the slots, zeros for rows that are not held."""
        wide = hidden.new_zeros(hidden.shape[0], self.length + 1, hidden.shape[-1])
        target = torch.where(self.filled, self.index, self.length).to(hidden.device)
        return wide.scatter(1, target[..., None].expand_as(hidden), hidden)[:, :-1]

    def pick(self, flags: Tensor) -> Tensor:
        """Flags given per prompt row, ``[B, n]``, per slot: ``[B, m]``, False in empty slots."""
        return flags.gather(1, self.index.clamp(min=0)) & self.filled


def gather(x: Tensor, index: Tensor, dim: int = 1) -> Tensor:
    """Rows of `x` along `dim`, one index list per sample.

    Args:
        x: ``[B or 1, ...]`` with the rows at `dim`.
        index: ``[B, m]``; -1 reads row 0.
    """
    index = index.to(x.device).clamp(min=0)
    dim = dim % x.ndim
    shape = [1] * x.ndim
    shape[0], shape[dim] = index.shape
    expanded = list(x.shape)
    expanded[0] = index.shape[0]
    index_shape = list(expanded)
    index_shape[dim] = index.shape[1]
    return torch.gather(x.expand(expanded), dim, index.reshape(shape).expand(index_shape))
