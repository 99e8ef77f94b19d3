"""Who sees whom in a layer, as masks over a batch's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sight:
    """What the rows of a layer see, as in a `planner.schedule.Stage`, and which visual tokens are hidden besides.

    Attributes:
        visual: visual rows see what the model lets them, the text before them and themselves, or themselves.
        text: text sees the image, does not, or reads the value of one visual token in place of every one's.
        hidden: ``[B, n]`` visual tokens that text does not see.
        merged: ``[B]`` columns of the tokens whose values are read; None: each sample's first visual token.
    """

    visual: Literal["full", "prefix", "self"] = "full"
    text: Literal["full", "none", "merge"] = "full"
    hidden: Tensor | None = None
    merged: Tensor | None = None


#: Per layer; None: the model as it is.
Sights = Sequence[Sight | None]


@dataclass(frozen=True, eq=False)
class Scope:
    """The rows that run: those from column `start` on, of some samples of the batch (None: all)."""

    start: int = 0
    samples: Tensor | None = None

    @property
    def whole(self) -> bool:
        """True when all rows run."""
        return self.start == 0 and self.samples is None

    def of(self, tensor: Tensor) -> Tensor:
        """A tensor of the whole batch, for the samples."""
        return tensor if self.samples is None else tensor[self.samples.to(tensor.device)]

    def cut(self, name: str, value: Any) -> Any:
        """A layer's argument for the rows: a mask ``[B or 1, 1, n, n]``, positions ``[..., B or 1, n]``, or tables of
        them ``[..., B or 1, n, r]``."""
        if isinstance(value, tuple):
            return tuple(self.cut(name, one) for one in value)
        if not isinstance(value, Tensor):
            return value
        batch = 0 if name == "attention_mask" else value.ndim - (2 if name == "position_ids" else 3)
        rows = 2 if name == "attention_mask" else batch + 1
        value = value.narrow(rows, self.start, value.shape[rows] - self.start)
        if self.samples is not None and value.shape[batch] > 1:
            value = value.index_select(batch, self.samples.to(value.device))
        return value


def closed_by(sight: Sight, visual: Tensor, text: Tensor, scope: Scope) -> Tensor:
    """``[b, n - start, n]`` which rows of a scope must not see which columns.

    Args:
        visual, text: ``[B, n]`` visual tokens, and the others that are no padding.
    """
    own, words, device, length = scope.of(visual), scope.of(text), visual.device, visual.shape[1]
    rows = (slice(None), slice(scope.start, None), None)
    closed = torch.zeros(len(own), length - scope.start, length, dtype=torch.bool, device=device)
    if sight.visual != "full":
        place = torch.arange(length, device=device)
        others = place[scope.start :, None] != place
        if sight.visual == "prefix":
            others = others & (own[:, None, :] | (place > place[scope.start :, None]))
        closed |= own[rows] & others
    if sight.text == "none":
        closed |= words[rows] & own[:, None, :]
    if sight.hidden is not None:
        closed |= words[rows] & (scope.of(sight.hidden.to(device)) & own)[:, None, :]
    return closed


def merged_values(value: Tensor, sight: Sight, visual: Tensor, scope: Scope) -> Tensor:
    """Values ``[b, Hkv, n, dh]`` with one visual token's in the place of every visual token's."""
    chosen = visual.int().argmax(1) if sight.merged is None else sight.merged.to(visual.device)
    columns = scope.of(chosen).to(value.device)
    one = value.gather(2, columns[:, None, None, None].expand(-1, value.shape[1], 1, value.shape[3]))
    return torch.where(scope.of(visual)[:, None, :, None].to(value.device), one, value)
