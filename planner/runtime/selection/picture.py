"""A schedule's entry on one picture by itself, for engines whose vision encoder runs before there is a prompt.

The choice is `planner.runtime.selection.entry`'s own: a picture is given to it as a prompt that holds nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from planner.runtime.imaging.grids import pictures_of
from planner.runtime.model.adapters import Parts
from planner.runtime.selection.entry import Entry
from planner.runtime.selection.pieces import lies_of
from planner.runtime.tensors.layout import Layout, read_layout
from planner.schedule import ENCODER_SCORES, Select, kept

#: What a processor says of a picture beside its pixels.
Beside = Mapping[str, Any]
#: Stands for an image token where there is no other.
_VISUAL = (0,)


class _Received:
    """Attention in a vision encoder that somebody else has watched."""

    def __init__(self) -> None:
        self.scores = torch.zeros(0)

    def watching(self) -> AbstractContextManager[None]:
        return nullcontext()

    def check(self, kwargs: dict[str, Any]) -> None:
        """Whoever watched knows what can be followed."""

    def forget(self) -> None:
        self.scores = torch.zeros(0)

    def take(self, layout: Layout, samples: int) -> Tensor:
        return self.scores


class PictureEntry:
    """What an entry keeps of a picture's projected tokens.

    Args:
        config: the model's transformers configuration.
        select: what the entry selects.
        seed: added to the selection's own.
    """

    def __init__(self, config: Any, select: Select, seed: int = 0) -> None:
        self.config, self.select = config, select
        parts = Parts(SimpleNamespace(config=config), None, (), {}, (), _VISUAL, 0)
        self._received = _Received() if select.rank_by in ENCODER_SCORES else None
        self._entry = Entry(parts, select, seed, self._received)

    def pieces(self, tokens: int, beside: Beside) -> list[tuple[int, int]]:
        """The size of each piece of a picture within which tokens compete, and how many of them stay.

        Args:
            tokens: of the picture.
            beside: what the processor says of it; each value has the picture's as its only row.

        Raises:
            UnsupportedModelError: the budget is for tiles, and how they lie is not known.
        """
        sizes = [tokens]
        if self.select.per != "prompt":
            (pictures,) = pictures_of(dict(beside), self._layout(tokens), _VISUAL, self.config)
            sizes = [sum(grid.tokens for grid in lie) for lie in lies_of(self.select, pictures)]
        return [(size, int(kept(self.select.keep, size))) for size in sizes]

    def chosen(
        self, features: Tensor, width: int, beside: Beside, received: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The rows that stay, ``[kept]``, and what they hold, ``[kept, D]``, united with dropped rows where the entry
        merges.

        Args:
            features: ``[tokens, D]``: projected features, and behind them whatever else belongs to a token.
            width: how many of the D channels are the projected feature.
            beside: as in `pieces`.
            received: ``[tokens]`` attention that each receives in the vision encoder, where the entry reads it.

        Raises:
            UnsupportedModelError: how the tokens lie in the picture must be known, and is not.
            RuntimeStateError: a score is NaN or infinite.
        """
        layout = self._layout(len(features), features.device)
        self._entry.begin(dict(beside), layout)
        if self._received is not None and received is not None:
            self._received.scores = received[None]
        found = self._entry.enter(layout, features[None, :, :width], [features[:, width:]])
        rows = found.stays.index[0]
        return rows, torch.cat([found.embeddings[0, rows], found.features[0][rows]], dim=1)

    def _layout(self, tokens: int, device: torch.device | None = None) -> Layout:
        return read_layout(torch.full((1, tokens), *_VISUAL, device=device), _VISUAL, None)
