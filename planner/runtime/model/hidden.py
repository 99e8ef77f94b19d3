"""How the hidden states of a decoder layer lie.

Most layers take one hidden state a token, ``[B, n, d]``. Layers with several (AltUp, Gemma 3n) take them stacked in
front, ``[S, B, n, d]``, and run attention and feed-forward on one of them, the active one.

Everywhere else hidden states are **rows**: ``[B, n, d]``, or ``[B, n, S, d]``. Tokens are the second dimension, and
whatever a token has lies behind it, so that whoever drops, moves or keeps tokens need not know. They are turned where
a layer is called, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class HiddenForm:
    """Between what a model's layers take and rows. Both directions are views.

    Attributes:
        active: which of a token's hidden states the layers run on; None where it has one.
    """

    active: int | None = None

    def rows(self, given: Tensor) -> Tensor:
        """Rows of what a layer is given, or gives."""
        return given if self.active is None else given.permute(1, 2, 0, 3)

    def given(self, rows: Tensor) -> Tensor:
        """What a layer takes, or gives, of rows."""
        return rows if self.active is None else rows.permute(2, 0, 1, 3)

    def seen(self, rows: Tensor) -> Tensor:
        """``[B, n, d]``: of each token what layers run on, and what scores that read hidden states read."""
        return rows if self.active is None else rows[:, :, self.active]


def token_count(given: Tensor) -> int:
    """How many tokens of a sample a layer is given, in either form."""
    return int(given.shape[-2])
