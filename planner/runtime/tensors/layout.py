"""Where the visual tokens of a prompt are, and the text after them.

Read from `input_ids`, never from constants. A text row is *after the image* when a visual token precedes it, so with
several images the text between them counts as after the first; rows before the first visual token are the system
prompt. Generated tokens are after it too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """Parts of a batch of prompts, ``[B, n]`` each.

    Attributes:
        ids: token ids.
        visual: image and video placeholders.
        valid: not padding.
        after: text after the image, padding excluded.
        ahead: text before the last visual token: all that some visual token could attend to.
        last: ``[B]`` last row of the prompt: the one whose attention scores the visual tokens.
        valid_counts, visual_counts, after_counts, ahead_counts: sums per sample, on the host.
    """

    ids: Tensor
    visual: Tensor
    valid: Tensor
    after: Tensor
    ahead: Tensor
    last: Tensor
    valid_counts: tuple[int, ...]
    visual_counts: tuple[int, ...]
    after_counts: tuple[int, ...]
    ahead_counts: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt, padding included."""
        return int(self.ids.shape[1])

    @property
    def one_block(self) -> bool:
        """True when no text stands between visual tokens, in any sample."""
        parts = zip(self.valid_counts, self.visual_counts, self.after_counts, self.ahead_counts, strict=True)
        return all(valid - visual - after == ahead for valid, visual, after, ahead in parts)

    def protected(self, count: int) -> Tensor:
        """``[B, n]``: the last `count` text rows after the image."""
        from_the_end = self.after.flip(1).cumsum(1).flip(1)
        return self.after & (from_the_end <= count)

    def visual_after_text(self) -> bool:
        """True when an image follows text that follows an image, in some sample."""
        return bool((self.visual & (self.after.cumsum(1) > 0)).any())


def visual_rows(ids: Tensor, visual_ids: tuple[int, ...]) -> Tensor:
    """``[B, n]``: rows that hold a visual token."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for token in visual_ids:
        found |= ids == token
    return found


def read_layout(ids: Tensor, visual_ids: tuple[int, ...], attention_mask: Tensor | None) -> Layout:
    """The layout of a batch.

    Args:
        ids: ``[B, n]``.
        visual_ids: token ids that stand for visual tokens.
        attention_mask: ``[B, n]``, 0 for padding; None: no padding.
    """
    valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.to(ids.device) != 0
    visual = visual_rows(ids, visual_ids) & valid
    after = (visual.cumsum(1) > 0) & ~visual & valid
    ahead = (visual.flip(1).cumsum(1).flip(1) > 0) & ~visual & valid
    position = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(valid, position, -1).amax(1).clamp(min=0)
    counts = torch.stack([valid.sum(1), visual.sum(1), after.sum(1), ahead.sum(1)]).tolist()
    return Layout(ids, visual, valid, after, ahead, last, *(tuple(row) for row in counts))
