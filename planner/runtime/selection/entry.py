"""The selection before layer 0: which visual rows enter the decoder, and what becomes of the others.

It happens where the text tower begins, so that compiled prefills, whose graphs begin there, have it too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from planner.errors import UnsupportedModelError
from planner.runtime.imaging.grids import pictures_of
from planner.runtime.model.adapters import Parts
from planner.runtime.selection.encoder import EncoderScores, find_encoder
from planner.runtime.selection.entry_scores import scores_of
from planner.runtime.selection.merging import into_last, into_nearest, united
from planner.runtime.selection.pieces import Lie, Pieces, groups_of, lies_of
from planner.runtime.selection.ranking import not_finite
from planner.runtime.selection.select import survivors
from planner.runtime.selection.smaller import SmallerImages
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.rows import Rows
from planner.schedule import ENCODER_SCORES, PLACED, Select, kept
from planner.spec.cells import cells_of, shares
from planner.spec.encoded import Grid


@dataclass(frozen=True)
class Entered:
    """What goes into the decoder.

    Attributes:
        stays: the visual rows that do.
        embeddings: ``[B, n, d]``, those rows united with dropped ones where the entry merges.
        features: of deepstack families, ``[visual tokens of the batch, d]`` each, united in the same way.
    """

    stays: Rows
    embeddings: Tensor
    features: list[Tensor]


class AttentionSource(Protocol):
    """Where the attention comes from that images receive in the vision encoder; see `EncoderScores`."""

    def watching(self) -> AbstractContextManager[None]:
        """Be in the encoder while the block runs."""

    def check(self, kwargs: dict[str, Any]) -> None:
        """Refuse what cannot be followed."""

    def forget(self) -> None:
        """Drop what an unfinished forward left."""

    def take(self, layout: Layout, samples: int) -> Tensor:
        """Scores of the visual rows, ``[B, n]``."""


class _Begun(threading.local):
    """What the calling thread's prompts said of their pictures, before they were encoded."""

    def __init__(self) -> None:
        self.samples = 0
        self.lies: list[list[Lie]] = []


class Entry:
    """A schedule's entry on a model.

    Args:
        parts: the model.
        select: what the entry selects.
        seed: added to the selection's own where it is random.
        encoder: where the attention of the vision encoder comes from; None: from the model, where it is read.

    Raises:
        UnsupportedModelError: it ranks by the vision encoder, whose patches cannot be followed or attention not seen.
    """

    def __init__(self, parts: Parts, select: Select, seed: int, encoder: AttentionSource | None = None) -> None:
        self.parts, self.select, self.seed = parts, select, seed
        self._encoder = encoder
        if encoder is None and select.rank_by in ENCODER_SCORES:
            self._encoder = EncoderScores(parts.model)
        self._smaller: SmallerImages | None = None
        vision = getattr(parts.model.config, "vision_config", None)
        if select.merge == "pixels" and SmallerImages.serves(vision):
            self._smaller = SmallerImages(find_encoder(parts.model), vision)
        self._begun = _Begun()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be in the vision encoder while the block runs: see what images leave there, or make them smaller."""
        with ExitStack() as stack:
            for watcher in (self._encoder, self._smaller):
                if watcher is not None:
                    stack.enter_context(watcher.watching())
            yield

    def begin(self, kwargs: dict[str, Any], layout: Layout) -> None:
        """The images among a model's arguments are about to be encoded.

        Raises:
            UnsupportedModelError: the entry needs to know of them what is not known.
        """
        begun, select = self._begun, self.select
        begun.samples, begun.lies = len(layout.ids), []
        if self._encoder is not None:
            self._encoder.check(kwargs)
            self._encoder.forget()
        if select.rank_by in PLACED or select.per != "prompt":
            pictures = pictures_of(kwargs, layout, self.parts.visual_ids, self.parts.model.config)
            begun.lies = [lies_of(select, sample) for sample in pictures]
            if select.rank_by == "frame_change":
                _check_videos(begun.lies)
        if self._smaller is not None:
            budgets = (pair for sample in begun.lies for lie in sample for pair in self._budgets(lie))
            self._smaller.begin([(grid, count) for grid, count in budgets if grid.still])

    def _budgets(self, lie: Lie) -> list[tuple[Grid, int]]:
        """Each grid of a piece, and the cells that it gets."""
        sizes = [grid.places for grid in lie]
        count = min(int(kept(self.select.keep, sum(grid.tokens for grid in lie))), sum(sizes))
        return list(zip(lie, shares(count, sizes), strict=True))

    def enter(self, layout: Layout, embeddings: Tensor, features: list[Tensor]) -> Entered:
        """The entry of a batch.

        Args:
            layout: parts of the prompts; beams and several answers repeat each sample of those that began.
            embeddings: ``[B, n, d]`` what enters the text tower.
            features: of deepstack families.

        Raises:
            UnsupportedModelError: patches and visual tokens do not match.
            RuntimeStateError: a score is NaN or infinite.
        """
        select, samples = self.select, len(layout.ids)
        if select.rank_by == "none":
            return Entered(Rows.of(torch.zeros_like(layout.visual), (0,) * samples), embeddings, features)
        times = samples // max(self._begun.samples, 1)
        attention = None if self._encoder is None else self._encoder.take(layout, self._begun.samples)
        inside, counts = torch.zeros_like(layout.ids), [0] * samples
        targets = torch.full_like(layout.ids, -1)
        for pieces in groups_of(layout, [lies for lies in self._begun.lies for _ in range(times)]):
            cells = self._cells(pieces) if select.rank_by == "grid" else None
            if cells is not None:
                scores = (cells == pieces.rows.index).to(torch.float32)
            else:
                scores = scores_of(select, self.seed, layout, pieces, embeddings, attention)
            if not bool(torch.isfinite(scores).all()):
                raise not_finite(f"'{select.rank_by}' before layer 0")
            stays = survivors(scores, pieces.rows, select.keep)
            inside += pieces.united(stays.mask.long(), 0)
            for sample, count in zip(pieces.owner.tolist(), stays.counts, strict=True):
                counts[sample] += count
            if select.merge != "none" and stays.width:
                joined = self._targets(pieces, stays, scores, embeddings, cells)
                targets = targets.maximum(pieces.united(joined, -1))
        if select.merge != "none":
            embeddings, features = united(embeddings, targets), [_united_flat(one, layout, targets) for one in features]
        return Entered(Rows.of(inside > 0, tuple(counts)), embeddings, features)

    def _cells(self, pieces: Pieces) -> Tensor:
        """``[P, r]``: the middle row of the cell that each row lies in, -1 where it lies in none."""
        rows = pieces.rows
        found = torch.full(rows.index.shape, -1)
        for piece, lie in enumerate(pieces.lies):
            for cell in cells_of(lie, int(kept(self.select.keep, rows.width))):
                found[piece, list(cell)] = cell[0]
        found = found.to(rows.index.device)
        return torch.where(found >= 0, rows.index.gather(1, found.clamp(min=0)), -1)

    def _targets(self, pieces: Pieces, stays: Rows, scores: Tensor, embeddings: Tensor, cells: Tensor | None) -> Tensor:
        """``[P, n]``: the row that each row of a piece joins, -1 where it joins none."""
        if cells is not None:
            # An image that was made smaller has its means already, and nothing elsewhere.
            joined = cells if self._smaller is None else cells.masked_fill(_still(pieces), -1)
            return pieces.rows.per_row(joined, -1)
        if self.select.merge == "mean":
            return into_last(scores, pieces.rows, stays)
        return into_nearest(pieces.pick(embeddings), pieces.rows, stays)


def _check_videos(lies: list[list[Lie]]) -> None:
    if any(lie and all(grid.still for grid in lie) for sample in lies for lie in sample):
        raise UnsupportedModelError(
            "'frame_change' compares the frames of a video, and these inputs bring an image",
            "Use another policy for images, such as dart or diverse",
        )


def _still(pieces: Pieces) -> Tensor:
    """``[P, r]``: rows of images, not of videos."""
    flags = [[grid.still for grid in lie for _ in range(grid.tokens)] for lie in pieces.lies]
    return torch.tensor(flags, device=pieces.rows.index.device)


def _united_flat(features: Tensor, layout: Layout, targets: Tensor) -> Tensor:
    """`united` for features of the visual rows alone."""
    visual = layout.visual.to(features.device)
    wide = features.new_zeros(*visual.shape, features.shape[-1])
    wide[visual] = features
    return united(wide, targets)[visual]
