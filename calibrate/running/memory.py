"""Peak memory of this process."""

from __future__ import annotations

import sys

import torch


def peak_bytes(device: torch.device) -> int | None:
    """Of the fullest accelerator where the model runs on some, else of the process; None where nobody keeps count."""
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024  # macOS counts bytes, others KiB
