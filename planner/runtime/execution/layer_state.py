"""What one layer of a prefill is working on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from planner.runtime.tensors.prefix import PrefixAttention
from planner.runtime.tensors.rows import Rows
from planner.schedule import Stage


@dataclass
class IsolatedRows:
    """Visual rows outside the main stream, in one layer.

    Attributes:
        rows: which they are.
        hidden: ``[B, a, ...]`` the layer's input.
        read: whether text reads them.
        key, shown: ``[B, Hkv, a, dh]`` keys and the values that text sees, None where no text reads them.
        merged: after a merge, the one row per sample whose value is shown.
        waiting: the layer's arguments for rows that run once it has the keys of the text before them.
        mask: ``[B, 1, a, p]`` what they see of that text, None where it is all of it.
        attention: their attention to it, once they have run.
    """

    rows: Rows
    hidden: Tensor
    read: bool = False
    key: Tensor | None = None
    shown: Tensor | None = None
    merged: Rows | None = None
    waiting: dict[str, Any] | None = None
    mask: Tensor | None = None
    attention: PrefixAttention | None = None


@dataclass
class LayerState:
    """One layer.

    Attributes:
        stage: the stage it belongs to.
        hidden: ``[B, m, ...]`` input of the main stream.
        keys: rows that its attention sees.
        isolated: rows beside the main stream, None where there are none.
        sinks: ``[B, k]`` which keys are visual sinks, where attention is redistributed.
    """

    stage: Stage
    hidden: Tensor
    keys: Rows
    isolated: IsolatedRows | None
    sinks: Tensor | None = None
