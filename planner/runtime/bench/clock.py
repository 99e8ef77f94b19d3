"""Clocks around a model's forward passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from planner.runtime.model.adapters import find_parts

#: Gives seconds.
Clock = Callable[[], float]


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def tower_clock(model: Any, device: torch.device, read: Clock | None = None) -> Iterator[list[float]]:
    """Seconds of each forward of the text tower, the plan's work on the way in and out included.

    `read` is another clock than wall time, such as `time.process_time` on a shared machine.
    """
    clock = read or (lambda: now(device))
    tower = find_parts(model).tower
    spans: list[float] = []
    started: list[float] = []

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        started.append(clock())

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        spans.append(clock() - started.pop())

    with ExitStack() as stack:
        for hook in (tower.register_forward_pre_hook(enter, prepend=True), tower.register_forward_hook(leave)):
            stack.callback(hook.remove)
        yield spans
