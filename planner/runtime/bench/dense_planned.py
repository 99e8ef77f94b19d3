"""Measure the time, memory and KV cache of a schedule beside the dense model. Predictions are never mixed in.

Dense and planned runs alternate in one process, so that other load on the machine affects both alike. Reported figures
are medians over the rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from planner.errors import InputError
from planner.runtime.attach import attach
from planner.runtime.bench.clock import now, tower_clock
from planner.runtime.bench.memory import peak_bytes
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
    ids = inputs["input_ids"]
    device = ids.device
    # The last round is for memory: giving free memory back before it would cost a timed round page faults.
    for number in range(warmup + rounds + 1):
        for run, plan in ((dense, None), (planned, schedule)):
            context = nullcontext() if plan is None else attach(model, plan, seed=seed, image_cache=image_cache)
            with context as handle, torch.inference_mode():
                if number == warmup + rounds:
                    run.peak_bytes = peak_bytes(device, lambda: _generate(model, inputs, new_tokens))
                    continue
                found = _measure(model, inputs, new_tokens)
                report = handle.report if handle is not None else report
            if number >= warmup:
                run.add(found)
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

    rounds: list[tuple[float, float, float, int]] = field(default_factory=list)
    peak_bytes: int | None = None

    def add(self, found: tuple[float, float, float, int]) -> None:
        self.rounds.append(found)

    def median(self) -> Measurement:
        prefill, decoder, decode, kept = zip(*self.rounds, strict=True)
        return Measurement(
            prefill_ms=statistics.median(prefill),
            decoder_prefill_ms=statistics.median(decoder),
            decode_ms=statistics.median(decode),
            peak_memory_bytes=self.peak_bytes,
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


def _measure(model: Any, inputs: dict[str, Any], new_tokens: int) -> tuple[float, float, float, int]:
    device = inputs["input_ids"].device
    gc.collect()
    with tower_clock(model, device) as spans:
        start = now(device)
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        prefill = now(device) - start
    held = kv_cache_bytes(output.past_key_values)
    del output
    clock = _Clock()
    _generate(model, inputs, new_tokens, streamer=clock)
    # The streamer sees the prompt first, then each token.
    tokens = clock.times[-new_tokens:]
    decode = (tokens[-1] - tokens[0]) / (new_tokens - 1)
    return prefill * 1e3, spans[0] * 1e3, decode * 1e3, held


def _generate(model: Any, inputs: dict[str, Any], new_tokens: int, **options: Any) -> None:
    model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, **options)
