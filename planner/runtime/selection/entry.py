"""The selection before layer 0: its scores, and what becomes of the tokens that it drops.

It happens where the text tower begins, so that compiled prefills, whose graphs begin there, have it too. Scores come
from the vision encoder, from the features that it gives to the decoder, or from where tokens lie in their picture.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planner.runtime.imaging.grids import pictures_of
from planner.runtime.model.adapters import Parts
from planner.runtime.selection import orders
from planner.runtime.selection.encoder import EncoderScores, find_encoder
from planner.runtime.selection.merging import into_last, into_nearest, united
from planner.runtime.selection.scores import random
from planner.runtime.selection.select import survivors
from planner.runtime.selection.smaller import SmallerImages
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.rows import Rows, gather
from planner.runtime.tensors.weights import working_dtype
from planner.schedule import ENCODER_SCORES, Fraction, Select, kept
from planner.spec.cells import cells_of, shares
from planner.spec.images import Grid


@dataclass(frozen=True)
class Entered:
    """What goes into the decoder.

    Attributes:
        scores: ``[B, n]`` by which the visual rows are chosen; 0 elsewhere. None where nothing is scored.
        embeddings: ``[B, n, d]``, the kept rows united with those that are dropped where the entry merges.
        features: of deepstack families, ``[visual tokens of the batch, d]`` each, united in the same way.
        gone: ``[B, n]`` visual rows that are dropped.
    """

    scores: Tensor | None
    embeddings: Tensor
    features: list[Tensor]
    gone: Tensor


class _Begun(threading.local):
    """What the calling thread's prompt said of its pictures, before they were encoded."""

    def __init__(self) -> None:
        self.samples = 0
        self.grids: list[tuple[Grid, ...]] = []


class Entry:
    """A schedule's entry on a model.

    Args:
        parts: the model.
        select: what the entry selects.
        seed: added to the selection's own where it is random.

    Raises:
        UnsupportedModelError: it ranks by the vision encoder, whose patches cannot be followed or attention not seen.
    """

    def __init__(self, parts: Parts, select: Select, seed: int) -> None:
        self.parts, self.select, self.seed = parts, select, seed
        self._encoder = EncoderScores(parts.model) if select.rank_by in ENCODER_SCORES else None
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
        begun = self._begun
        begun.samples = len(layout.ids)
        if self._encoder is not None:
            self._encoder.check(kwargs)
            self._encoder.forget()
        if self.select.rank_by == "grid":
            pictures = pictures_of(kwargs, layout, self.parts.visual_ids, self.parts.model.config)
            begun.grids = [tuple(grid for picture in sample for grid in picture) for sample in pictures]
        if self._smaller is not None:
            self._smaller.begin([pair for sample in begun.grids for pair in self._budgets(sample) if pair[0].still])

    def _budgets(self, grids: tuple[Grid, ...]) -> list[tuple[Grid, int]]:
        """Each grid of a sample, and the cells that it gets."""
        count = int(kept(self.select.keep, sum(grid.tokens for grid in grids)))
        sizes = [grid.places for grid in grids]
        return list(zip(grids, shares(min(count, sum(sizes)), sizes), strict=True))

    def enter(self, layout: Layout, embeddings: Tensor, features: list[Tensor]) -> Entered:
        """The entry of a batch.

        Args:
            layout: parts of the prompts; beams and several answers repeat each sample of those that began.
            embeddings: ``[B, n, d]`` what enters the text tower.
            features: of deepstack families.

        Raises:
            UnsupportedModelError: patches and visual tokens do not match.
        """
        if self.select.rank_by == "none":
            return Entered(None, embeddings, features, layout.visual)
        ranked = Rows.of(layout.visual, layout.visual_counts)
        cells = self._cells(layout, ranked) if self.select.rank_by == "grid" else None
        scores = (
            self._scores(layout, ranked, embeddings) if cells is None else (cells == ranked.index).to(torch.float32)
        )
        stays = survivors(scores, ranked, self.select.keep)
        if self.select.merge != "none":
            targets = self._targets(ranked, stays, scores, embeddings, cells)
            embeddings, features = united(embeddings, targets), [_united_flat(one, layout, targets) for one in features]
        return Entered(ranked.per_row(scores, 0.0), embeddings, features, layout.visual & ~stays.mask)

    def _scores(self, layout: Layout, ranked: Rows, embeddings: Tensor) -> Tensor:
        """``[B, r]`` of the ranked rows."""
        select = self.select
        attention = None
        if self._encoder is not None:
            attention = self._encoder.take(layout, self._begun.samples).gather(1, ranked.index.clamp(min=0))
        if select.rank_by == "encoder_attention" and attention is not None:
            return attention
        if select.rank_by == "random":
            return random(layout, ranked, self.seed + select.seed, -1)
        features = gather(embeddings, ranked.index)
        norm: Tensor = features.to(working_dtype(features)).norm(dim=-1)
        if select.rank_by == "encoder_norm":
            return norm.to(ranked.index.device)
        counts = tuple(int(kept(select.keep, present)) for present in ranked.counts)
        count = max(counts)
        if select.rank_by == "pivot_distance":
            found = orders.pivot_distance(features, ranked, select.pivots)
        elif select.rank_by == "max_min_distance":
            found = orders.max_min_distance(features, ranked, count)
        elif attention is not None:
            salient = tuple(int(kept(Fraction(fraction=select.salient), budget)) for budget in counts)
            found = orders.salient_then_distant(features, ranked, attention, salient, count)
            norm = norm + attention.to(norm)
        else:
            found = orders.determinantal(features, ranked, count, _question(layout, embeddings))
        # The number of a pick is finite whatever it was picked by.
        return torch.where(torch.isfinite(norm), found, float("nan")).to(ranked.index.device)

    def _cells(self, layout: Layout, ranked: Rows) -> Tensor:
        """``[B, r]``: the middle row of the cell that each ranked row lies in, -1 where it lies in none."""
        found = torch.full(ranked.index.shape, -1)
        times = len(layout.ids) // max(self._begun.samples, 1)
        for sample, present in enumerate(ranked.counts):
            grids, first = self._begun.grids[sample // times], ranked.width - present
            for cell in cells_of(grids, int(kept(self.select.keep, present))):
                found[sample, [first + place for place in cell]] = first + cell[0]
        found = found.to(ranked.index.device)
        return torch.where(found >= 0, ranked.index.gather(1, found.clamp(min=0)), -1)

    def _still(self, ranked: Rows) -> Tensor:
        """``[B, r]``: rows of images, not of videos."""
        flags = torch.zeros(ranked.index.shape, dtype=torch.bool)
        times = len(ranked.index) // max(self._begun.samples, 1)
        for sample, present in enumerate(ranked.counts):
            of_images = [grid.still for grid in self._begun.grids[sample // times] for _ in range(grid.tokens)]
            flags[sample, ranked.width - present :] = torch.tensor(of_images, dtype=torch.bool)
        return flags.to(ranked.index.device)

    def _targets(self, ranked: Rows, stays: Rows, scores: Tensor, embeddings: Tensor, cells: Tensor | None) -> Tensor:
        """``[B, n]``: the row that each row joins."""
        if cells is not None:
            # An image that was made smaller has its means already, and nothing elsewhere.
            joined = cells if self._smaller is None else cells.masked_fill(self._still(ranked), -1)
            return ranked.per_row(joined, -1)
        if self.select.merge == "mean":
            return into_last(scores, ranked, stays)
        return into_nearest(gather(embeddings, ranked.index), ranked, stays)


def _united_flat(features: Tensor, layout: Layout, targets: Tensor) -> Tensor:
    """`united` for features of the visual rows alone."""
    visual = layout.visual.to(features.device)
    wide = features.new_zeros(*visual.shape, features.shape[-1])
    wide[visual] = features
    return united(wide, targets)[visual]


def _question(layout: Layout, embeddings: Tensor) -> Tensor:
    """Mean embedding of the text after the image, ``[B, d]``; zeros where there is none."""
    after = layout.after.to(embeddings.device)
    total = (embeddings * after[..., None]).sum(1, dtype=torch.promote_types(embeddings.dtype, torch.float32))
    return total / after.sum(1, keepdim=True).clamp(min=1)
