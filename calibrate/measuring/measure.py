"""The measurement loop: per batch, all one-pass probes in one forward pass, then the probes that run the model.

Work goes in steps after each of which the probes hold whole rows, so that the state can be written between any two: a
batch of a probe, or a single sample of a probe that takes samples alone. An interrupted run loses the current step; a
killed one also what was finished in the last `STATE_INTERVAL_S` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from calibrate.inputs.batches import Batch
from calibrate.inputs.encode import Encoder, to_device
from calibrate.inputs.identity import Model
from calibrate.inputs.samples import SampleSet
from calibrate.probes.base import Capture, ExecutedProbe, OnePassProbe, Probe
from calibrate.progress import Progress
from planner.errors import CalibrationError
from planner.runtime import observe

#: What a sample's company in a batch changes by more than the last digits.
_HALF = (torch.bfloat16, torch.float16)
#: Seconds between two writings of the state.
STATE_INTERVAL_S = 10.0
#: What the shared pass is called where the time left is shown.
SHARED = "measuring layers"


@dataclass
class ProbeTiming:
    """Seconds spent, for the lines shown afterwards; never part of the profile."""

    forward_s: float = 0.0
    probes_s: dict[str, float] = field(default_factory=dict)

    def add(self, probe: str, seconds: float) -> None:
        self.probes_s[probe] = self.probes_s.get(probe, 0.0) + seconds


@dataclass
class Job:
    """A model, the whole sample set, and the probes that collect rows of it."""

    model: Any
    encoder: Encoder
    samples: SampleSet
    known: Model
    probes: Mapping[str, Probe]
    timing: ProbeTiming = field(default_factory=ProbeTiming)

    def batch(self, ids: tuple[int, ...]) -> Batch:
        """Some samples, encoded.

        Raises:
            SampleError: one of them cannot be read or processed.
        """
        samples = tuple(self.samples[i] for i in ids)
        inputs = to_device(self.encoder(samples), self.model)
        return Batch(ids, samples, inputs, self.model, self.encoder, self.samples)


def waiting(probe: Probe, unit: Sequence[int]) -> list[int]:
    """The samples of a unit that a probe still needs."""
    return [sample for sample in unit if probe.wants(sample) and sample not in probe.table]


def task(probe: str) -> str:
    """What an executed probe is called where the time left is shown."""
    return f"measuring {probe}"


def measure(job: Job, units: Sequence[range], save: Callable[[], None] | None, progress: Progress) -> None:
    """Bring every probe up to date on all units.

    Args:
        save: writes the state; called between steps, at the end, and at an interrupt.
        progress: told of every step.

    Raises:
        CalibrationError: activations that are not finite; layer and sample are named.
        SampleError: a sample cannot be read.
    """
    saved = time.monotonic()
    try:
        for unit in units:
            for name, count, step in _steps(job, unit):
                with progress.step(name, count), torch.inference_mode():
                    step()
                if save is not None and time.monotonic() - saved > STATE_INTERVAL_S:
                    save()
                    saved = time.monotonic()
    except KeyboardInterrupt:
        if save is not None:
            save()  # probes take in whole rows, whenever they are interrupted
        raise
    if save is not None:
        save()


def _steps(job: Job, unit: range) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """What is left to do on one unit: the task, how many of its samples, and what does it."""
    batch = cache(job.batch)
    shared = {n: p for n, p in job.probes.items() if isinstance(p, OnePassProbe) and waiting(p, unit)}
    if shared:
        yield SHARED, len(unit), lambda: _shared_pass(job, batch(tuple(unit)), shared)
    executed = {n: p for n, p in job.probes.items() if isinstance(p, ExecutedProbe)}
    for name, probe in executed.items():
        left = waiting(probe, unit)
        # In batches exactly the samples the probe wants, finished or not: the same company gives the same numbers.
        together = [tuple(sample for sample in unit if probe.wants(sample))] if left else []
        for ids in [(sample,) for sample in left] if probe.alone else together:
            yield task(name), len(ids), partial(_run, job.timing, name, probe, partial(batch, ids))


def _run(timing: ProbeTiming, name: str, probe: ExecutedProbe, batch: Callable[[], Batch]) -> None:
    begun = time.perf_counter()
    probe.run(batch())
    timing.add(name, time.perf_counter() - begun)


def _shared_pass(job: Job, batch: Batch, probes: Mapping[str, OnePassProbe]) -> None:
    comparing = {name: probe.by_itself for name, probe in probes.items() if probe.compares}
    if comparing and job.model.dtype in _HALF and len(batch.ids) > 1:
        _pass(job, job.batch(batch.ids[:1]), comparing)
    norms = _pass(job, batch, {name: probe.update for name, probe in probes.items()})
    _check_finite(norms, batch, tuple(job.known.parts.attentions))


def _pass(job: Job, batch: Batch, readers: Mapping[str, Callable[[Capture], None]]) -> torch.Tensor:
    """One forward pass, read by probes; norms ``[L, B]`` of the last rows' attention outputs, of layers that attend."""
    spent = 0.0
    attending = tuple(job.known.parts.attentions)
    norms: list[torch.Tensor] = []

    def look(view: Any) -> None:
        nonlocal spent
        capture = Capture(view, job.known.layers, batch.ids, attending)
        norms.append(capture.influence.output_norm)
        for name, read in readers.items():
            begun = time.perf_counter()
            read(capture)
            seconds = time.perf_counter() - begun
            spent += seconds
            job.timing.add(name, seconds)

    begun = time.perf_counter()
    with observe(job.model, look, attending):
        job.model(**batch.inputs, use_cache=False, logits_to_keep=1)
    job.timing.forward_s += time.perf_counter() - begun - spent
    return torch.stack([norm.cpu() for norm in norms])


def _check_finite(norms: torch.Tensor, batch: Batch, attending: Sequence[int]) -> None:
    """Refuse NaN and infinity; `norms [L, B]` of last rows' attention outputs, finite only if all they read is."""
    if not bool(torch.isfinite(norms).all()):
        layer, sample = (int(i) for i in (~torch.isfinite(norms)).nonzero()[0])
        raise CalibrationError(
            f"activations are not finite in layer {attending[layer]} for the sample {batch.samples[sample].where}",
            "Use --dtype bfloat16 or float32, or remove the sample",
        )
