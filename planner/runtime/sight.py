"""What one layer of a prefill is working on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from planner.runtime.rows import Rows
from planner.schedule import Stage


@dataclass
class Alone:
    """Visual rows outside the main stream, in one layer.

    Attributes:
        hidden: ``[B, a, d]`` the layer's input.
        key, shown: ``[B, Hkv, a, dh]`` keys and the values that text sees, None where no text reads them.
        merged: after a merge, the one row per sample whose value is shown.
    """

    hidden: Tensor
    key: Tensor | None
    shown: Tensor | None
    merged: Rows | None


@dataclass
class Sight:
    """What one layer is working on."""

    stage: Stage
    hidden: Tensor
    keys: Rows
    alone: Alone | None
    sinks: Tensor | None = None
