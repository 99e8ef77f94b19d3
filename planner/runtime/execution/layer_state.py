"""What one layer of a prefill is working on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from planner.runtime.tensors.rows import Rows
from planner.schedule import Stage


@dataclass
class IsolatedRows:
    """Visual rows outside the main stream, in one layer.

    Attributes:
        rows: which they are.
        hidden: ``[B, a, d]`` the layer's input.
        key, shown: ``[B, Hkv, a, dh]`` keys and the values that text sees, None where no text reads them.
        merged: after a merge, the one row per sample whose value is shown.
    """

    rows: Rows
    hidden: Tensor
    key: Tensor | None = None
    shown: Tensor | None = None
    merged: Rows | None = None


@dataclass
class LayerState:
    """One layer.

    Attributes:
        stage: the stage it belongs to.
        hidden: ``[B, m, d]`` input of the main stream.
        keys: rows that its attention sees.
        isolated: rows beside the main stream, None where there are none.
        sinks: ``[B, k]`` which keys are visual sinks, where attention is redistributed.
    """

    stage: Stage
    hidden: Tensor
    keys: Rows
    isolated: IsolatedRows | None
    sinks: Tensor | None = None
