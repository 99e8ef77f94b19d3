"""Measured prefill time of several schedules, side by side.

Rounds are interleaved and start with another schedule each time, so that a machine that slows down slows all of them;
the median of the rounds is reported. Attaching is not part of the time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from calibrate.inputs.batches import Watch, unwatched
from calibrate.inputs.encode import Inputs, input_device
from calibrate.running.execute import executing
from planner.schedule import Schedule

WARM_UP_ROUNDS = 2


def prefill_ms(
    model: Any, inputs: Inputs, schedules: Sequence[Schedule], rounds: int, watch: Watch = unwatched
) -> list[float]:
    """Median milliseconds of one prefill (with its KV cache, head on the last position) under each schedule.

    Args:
        watch: counts prefills.
    """
    spent: list[list[float]] = [[] for _ in schedules]
    for turn in range(WARM_UP_ROUNDS + rounds):
        for offset in range(len(schedules)):
            index = (turn + offset) % len(schedules)
            with watch(len(inputs["input_ids"])), torch.inference_mode(), executing(model, schedules[index]):
                synchronize(model)
                begun = time.perf_counter()
                model(**inputs, use_cache=True, logits_to_keep=1)
                synchronize(model)
                seconds = time.perf_counter() - begun
            if turn >= WARM_UP_ROUNDS:
                spent[index].append(seconds)
    return [1000 * statistics.median(times) for times in spent]


def synchronize(model: Any) -> None:
    """Wait until the model's accelerator has done what it was given."""
    device = input_device(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
