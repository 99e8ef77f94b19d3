"""Whether a model that was loaded in half precision would run faster in float32: many CPUs only emulate it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.nn.functional import linear

#: Rows and columns of a product about as large as a small decoder's, and how often it is timed.
_ROWS, _COLUMNS, _TIMES = 256, 1024, 3
#: What takes so many times as long as in float32 is told.
_SLOW = 1.5


def slow_half_precision(model: Any) -> str | None:
    """A note, where the model is on a CPU, in half precision, and a matrix product takes longer there than in float32.

    It takes about a tenth of a second; nothing is timed of models in other number formats, or on accelerators.
    """
    if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float16):
        return None
    ratio = _seconds(model.dtype) / _seconds(torch.float32)
    if ratio < _SLOW:
        return None
    name = str(model.dtype).removeprefix("torch.")
    return (
        f"{name} is slow on this CPU: a matrix product takes {ratio:.1f} times as long as in float32; --dtype float32 "
        "is faster"
    )


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of a few products."""
    rows, weights = torch.ones(_ROWS, _COLUMNS, dtype=dtype), torch.ones(_COLUMNS, _COLUMNS, dtype=dtype)
    found = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        linear(rows, weights)
        found.append(time.perf_counter() - begun)
    return min(found)
