"""The most memory that a call holds beside what was held before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_PROCESS = Path("/proc/self")


def peak_bytes(device: torch.device, call: Callable[[], Any]) -> int | None:
    """Peak of one call, not to be timed: allocated on a GPU; elsewhere resident, where Linux and glibc say so.

    An allocator keeps what an earlier call has freed, so that a second call would seem to need nothing. What is free
    is given back first.

    Returns:
        Bytes, or None where nobody keeps count.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _reset():
        call()
        return None
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 0) or None


def _reset() -> bool:
    """Give free memory back to the system and set the high-water mark to what is left."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_PROCESS / "clear_refs").write_text("5")
    except (OSError, AttributeError):  # not Linux, not glibc, or no right to
        return False
    return True


def _status(name: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in {_PROCESS}/status")
