"""Measure the time, memory and KV cache of a schedule beside the dense model. Predictions are never mixed in.

Dense and planned runs alternate in one process, so that other load on the machine affects both alike. Reported figures
are medians over the rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planner.errors import InputError
from planner.runtime.attach import attach
from planner.runtime.model.adapters import find_parts
from planner.runtime.report import Report
from planner.schedule import Schedule


@dataclass(frozen=True)
class Measurement:
    """Medians over the rounds.

    Attributes:
        prefill_ms: the whole model, vision encoder included, last-position head.
        decoder_prefill_ms: the text tower alone, in the same forwards.
        decode_ms: one generated token, `generate`'s own work included.
        peak_memory_bytes: the most memory that prefill and decoding held beside what was held before; None where it
            cannot be read.
        kv_cache_bytes: keys and values held after the prefill.
        prefill_rounds_ms: every round, for judging the spread.
    """

    prefill_ms: float
    decoder_prefill_ms: float
    decode_ms: float
    peak_memory_bytes: int | None
    kv_cache_bytes: int
    prefill_rounds_ms: tuple[float, ...]


@dataclass(frozen=True)
class BenchResult:
    """Dense against planned on one machine.

    Attributes:
        dense, planned: the measurements.
        report: tokens that each layer ran with the plan; None for a prompt without an image.
        device, dtype, threads, torch_version, transformers_version: where and with what it was measured.
        batch, prompt_tokens, new_tokens, rounds: what was measured.
    """

    dense: Measurement
    planned: Measurement
    report: Report | None
    device: str
    dtype: str
    threads: int
    torch_version: str
    transformers_version: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    rounds: int

    @property
    def prefill_ratio(self) -> float:
        """Planned over dense, whole model."""
        return self.planned.prefill_ms / self.dense.prefill_ms

    @property
    def decoder_prefill_ratio(self) -> float:
        """Planned over dense, text tower alone."""
        return self.planned.decoder_prefill_ms / self.dense.decoder_prefill_ms

    @property
    def decode_ratio(self) -> float:
        """Planned over dense, one token."""
        return self.planned.decode_ms / self.dense.decode_ms


def bench(
    model: Any,
    inputs: dict[str, Any],
    schedule: Schedule,
    *,
    rounds: int = 5,
    warmup: int = 1,
    new_tokens: int = 16,
    seed: int = 0,
    image_cache: Any = None,
) -> BenchResult:
    """Measure one prompt (or batch) dense and with a schedule.

    Args:
        model: a transformers vision-language model in evaluation mode.
        inputs: what its processor gives, on its device.
        schedule: what to execute.
        rounds: measured rounds; each runs both.
        warmup: rounds before that are not counted.
        new_tokens: tokens to generate for the decode time, at least 2.
        seed, image_cache: as in `attach`.

    Raises:
        InputError: `rounds` or `new_tokens` too small.
        PlannerError: the schedule cannot be attached.
    """
    if rounds < 1 or new_tokens < 2:
        raise InputError("a measurement needs at least one round and two new tokens", "Raise rounds or new_tokens")
    import transformers

    dense, planned = _Run(), _Run()
    report: Report | None = None
    for number in range(warmup + rounds):
        for run, plan in ((dense, None), (planned, schedule)):
            context = nullcontext() if plan is None else attach(model, plan, seed=seed, image_cache=image_cache)
            with context as handle, torch.inference_mode():
                found = _measure(model, inputs, new_tokens)
                report = handle.report if handle is not None else report
            if number >= warmup:
                run.add(found)
    ids = inputs["input_ids"]
    device = ids.device
    return BenchResult(
        dense=dense.median(),
        planned=planned.median(),
        report=report,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        batch=ids.shape[0],
        prompt_tokens=ids.shape[1],
        new_tokens=new_tokens,
        rounds=rounds,
    )


def kv_cache_bytes(cache: Any) -> int:
    """Bytes of keys and values that a cache holds."""
    tensors = [x for layer in cache.layers for x in (layer.keys, layer.values) if x is not None]
    return sum(x.numel() * x.element_size() for x in tensors)


@dataclass
class _Run:
    """Rounds of one side."""

    rounds: list[tuple[float, float, float, int | None, int]] = field(default_factory=list)

    def add(self, found: tuple[float, float, float, int | None, int]) -> None:
        self.rounds.append(found)

    def median(self) -> Measurement:
        prefill, decoder, decode, peak, kept = zip(*self.rounds, strict=True)
        peaks = [value for value in peak if value is not None]
        return Measurement(
            prefill_ms=statistics.median(prefill),
            decoder_prefill_ms=statistics.median(decoder),
            decode_ms=statistics.median(decode),
            peak_memory_bytes=max(peaks) if peaks else None,
            kv_cache_bytes=kept[-1],
            prefill_rounds_ms=tuple(prefill),
        )


class _Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""


def _measure(model: Any, inputs: dict[str, Any], new_tokens: int) -> tuple[float, float, float, int | None, int]:
    device = inputs["input_ids"].device
    gc.collect()
    with _PeakMemory(device) as memory:
        with tower_clock(model, device) as spans:
            start = _now(device)
            output = model(**inputs, use_cache=True, logits_to_keep=1)
            prefill = _now(device) - start
        held = kv_cache_bytes(output.past_key_values)
        del output
        clock = _Clock()
        model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, streamer=clock)
    # The streamer sees the prompt first, then each token.
    tokens = clock.times[-new_tokens:]
    decode = (tokens[-1] - tokens[0]) / (new_tokens - 1)
    return prefill * 1e3, spans[0] * 1e3, decode * 1e3, memory.bytes, held


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def tower_clock(model: Any, device: torch.device, now: Callable[[], float] | None = None) -> Iterator[list[float]]:
    """Seconds of each forward of the text tower, the plan's work on the way in and out included.

    `now` is another clock than wall time, such as `time.process_time` on a shared machine.
    """
    clock = now or (lambda: _now(device))
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


class _PeakMemory:
    """Most memory held in a block beyond what was held at its start: allocated on a GPU, else resident (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> _PeakMemory:
        self.before: int | None = None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
                self.before = _status("VmRSS")
            except OSError:
                self.before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")
            self.bytes = max(peak - self.before, 0)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")
