"""Whether this CPU computes in half precision, or only emulates it, so that everything takes longer than in float32."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch.nn.functional import linear

#: Rows and columns of a product about as large as a small decoder's, and how often it is timed.
_ROWS, _COLUMNS, _TIMES = 256, 1024, 3
#: What takes so many times as long as in float32 is emulated.
_SLOW = 1.5


def slow_half_precision(model: Any) -> str | None:
    """A note, where the model is in half precision and on a CPU that only emulates it."""
    if not emulated(model.device, model.dtype):
        return None
    name = str(model.dtype).removeprefix("torch.")
    return (
        f"{name} is slow on this CPU: a matrix product takes {slowdown(model.dtype):.1f} times as long as in float32; "
        "--dtype float32 is faster"
    )


def emulated(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a number format is half precision, and a CPU's matrix products take longer in it than in float32.

    The first question takes about a tenth of a second; nothing is timed of other formats, or on accelerators.
    """
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and slowdown(dtype) >= _SLOW


@cache
def slowdown(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a matrix product takes on this CPU."""
    return _seconds(dtype) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of a few products."""
    rows, weights = torch.ones(_ROWS, _COLUMNS, dtype=dtype), torch.ones(_COLUMNS, _COLUMNS, dtype=dtype)
    found = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        linear(rows, weights)
        found.append(time.perf_counter() - begun)
    return min(found)
