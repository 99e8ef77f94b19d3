"""The rows of a prefill: the main stream, and the isolated visual rows beside it.

`main` goes through the unmodified layers. While no visual row sees another one they are `isolated`, outside it.
Streams part, join and lose rows between layers; within a stream rows stay in prompt order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.rows import Rows, gather


@dataclass(frozen=True, eq=False)
class Stream:
    """Rows and their hidden states, ``[B, width, ...]``."""

    rows: Rows
    hidden: Tensor


class Streams:
    """The streams of one prefill.

    The hidden states of the main stream are the model's: they come in as an argument and go out as the result.

    Attributes:
        main: rows of the main stream.
        isolated: visual rows that run beside the main stream, or None.
        visual, text: the rows that are left, in either stream.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.main = Rows.all(layout.ids.shape[0], layout.length, layout.ids.device)
        self.isolated: Stream | None = None
        self.visual = Rows.of(layout.visual, layout.visual_counts)
        self.text = Rows.of(
            layout.valid & ~layout.visual,
            tuple(valid - visual for valid, visual in zip(layout.valid_counts, layout.visual_counts, strict=True)),
        )
        self._present: tuple[Rows, Rows, Rows] | None = None
        self._ahead: tuple[Rows, Rows] | None = None

    # -- what is where -----------------------------------------------------------------------------------------------

    def present(self) -> Rows:
        """All rows that are left, in prompt order."""
        if self.isolated is None:
            return self.main
        known = self._present
        if known is None or known[0] is not self.main or known[1] is not self.isolated.rows:
            known = self._present = (self.main, self.isolated.rows, self._text_and_visual())
        return known[2]

    def beside(self, added: Rows) -> Rows:
        """The main stream and some rows outside it, in prompt order."""
        if self.isolated is not None and added is self.isolated.rows:
            return self.present()
        counts = tuple(m + a for m, a in zip(self.main.counts, added.counts, strict=True))
        return Rows.of(self.main.mask | added.mask, counts)

    def order(self, union: Rows, added: Rows) -> Tensor:
        """Where the rows of a union are in ``[added | main]``."""
        is_added = added.mask.gather(1, union.index.clamp(min=0))
        return torch.where(is_added, added.slots_of(union), self.main.slots_of(union) + added.width)

    def together(self, hidden: Tensor, isolated: Tensor | None = None) -> Tensor:
        """Hidden states of all rows that are left, in prompt order.

        Args:
            hidden: of the main stream.
            isolated: of the isolated rows, where they differ from the present ones.
        """
        if self.isolated is None:
            return hidden
        beside = self.isolated.hidden if isolated is None else isolated
        order = self.order(self.present(), self.isolated.rows)
        return gather(torch.cat([beside.to(hidden.device), hidden], dim=1), order)

    def text_after(self) -> Rows:
        """Text after the image that is left."""
        layout = self.layout
        before = (
            valid - visual - after
            for valid, visual, after in zip(layout.valid_counts, layout.visual_counts, layout.after_counts, strict=True)
        )
        counts = tuple(text - ahead for text, ahead in zip(self.text.counts, before, strict=True))
        return Rows.of(self.text.mask & layout.after, counts)

    def ahead(self) -> Rows:
        """Text left before the last visual row: all that isolated rows could see."""
        known = self._ahead
        if known is None or known[0] is not self.text:
            rows = Rows.most(self.text.mask & self.layout.ahead, max(self.layout.ahead_counts))
            known = self._ahead = (self.text, rows)
        return known[1]

    def _text_and_visual(self) -> Rows:
        counts = tuple(t + v for t, v in zip(self.text.counts, self.visual.counts, strict=True))
        return Rows.of(self.text.mask | self.visual.mask, counts)

    # -- what changes between layers ---------------------------------------------------------------------------------

    def part(self, hidden: Tensor) -> Tensor:
        """Move the visual rows out of the main stream."""
        self.isolated = Stream(self.visual, gather(hidden, self.main.slots_of(self.visual)))
        return self._move_main(self.text, hidden)

    def join(self, hidden: Tensor) -> Tensor:
        """The isolated rows rejoin the main stream."""
        present, hidden = self.present(), self.together(hidden)
        self.main, self.isolated = present, None
        return hidden

    def keep_visual(self, rows: Rows, hidden: Tensor) -> Tensor:
        """Drop the visual rows that are not in `rows`."""
        self.visual = rows
        if self.isolated is None:
            return self._move_main(self._text_and_visual(), hidden)
        left = Stream(rows, gather(self.isolated.hidden, self.isolated.rows.slots_of(rows)))
        self.isolated = left if rows.width else None
        return hidden

    def keep_context(self, ranked: Rows, rows: Rows, hidden: Tensor) -> Tensor:
        """Drop the ranked text rows that are not in `rows`."""
        rest = self.text.mask & ~(ranked.mask & ~rows.mask)
        counts = (t - r + s for t, r, s in zip(self.text.counts, ranked.counts, rows.counts, strict=True))
        self.text = Rows.of(rest, tuple(counts))
        return self._move_main(self._text_and_visual() if self.isolated is None else self.text, hidden)

    def advance(self, isolated: Tensor) -> None:
        """Replace the hidden states of the isolated rows by a layer's output."""
        assert self.isolated is not None
        self.isolated = Stream(self.isolated.rows, isolated)

    def add_to_visual(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Add features ``[visual tokens of the batch, d]`` to the visual rows that are left (deepstack)."""
        visual = self.layout.visual
        place = visual.flatten().cumsum(0).reshape(visual.shape) - 1
        features = features.to(hidden.device, hidden.dtype)
        if self.isolated is not None:
            self.advance(self.isolated.hidden + features[place.gather(1, self.isolated.rows.index.clamp(min=0))])
            return hidden
        index = self.main.index.clamp(min=0)
        is_visual = self.main.pick(visual)[..., None]
        return hidden + features[place.gather(1, index).clamp(min=0)] * is_visual.to(hidden.device)

    def _move_main(self, rows: Rows, hidden: Tensor) -> Tensor:
        hidden = gather(hidden, self.main.slots_of(rows))
        self.main = rows
        return hidden
