"""What a calibration will cost, announced before it starts: forward passes and estimated seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from calibrate.inputs.batches import Batch
from calibrate.measuring.measure import SHARED, Job, task, waiting
from calibrate.probes.base import ExecutedProbe
from calibrate.progress import Progress, spell_time
from calibrate.running.timing import synchronize
from planner.profile import PromptShape


def announce(job: Job, units: Sequence[range], processes: int, progress: Progress) -> None:
    """Say what is left to measure: one line for all one-pass probes, one for each other probe; and how long all that is
    expected will take, whatever it is.

    Seconds are those of an ordinary forward pass of the first batch, measured here, times the work that is left. That
    is a first guess: some probes stop early or drop tokens, and some take samples one by one.

    Args:
        units: those of this process.
        processes: how many measure as much at the same time.
        progress: told what to expect.
    """
    shared = {name for name, probe in job.probes.items() if not isinstance(probe, ExecutedProbe)}
    left = {name: sum(len(waiting(probe, unit)) for unit in units) for name, probe in job.probes.items()}
    first = next((unit for unit in units if any(waiting(probe, unit) for probe in job.probes.values())), None)
    if first is None:
        progress.say("nothing is left to measure")
        return
    batch = job.batch(tuple(first))
    sample_s, prompt = _sample_s(batch), _shape(batch)
    each = "" if processes == 1 else f" in each of {processes} processes"
    samples = max(left[name] for name in shared)
    if samples:
        progress.expect(SHARED, samples, sample_s)
        names = ", ".join(name for name in job.probes if name in shared and left[name])
        about = spell_time(samples * sample_s)
        progress.say(f"{names}: one forward pass over {samples} samples together{each}, about {about}")
    for name, probe in job.probes.items():
        if isinstance(probe, ExecutedProbe) and left[name]:
            unit_s = probe.work(job.known.layers, prompt) * sample_s
            progress.expect(task(name), left[name], unit_s)
            passes = f"{probe.forwards(job.known.layers)} forward passes over {left[name]} samples"
            progress.say(f"{name}: {passes}{each}, about {spell_time(left[name] * unit_s)}")
    about = spell_time(progress.left_s)
    progress.say(f"in all about {about}, by a forward pass of {1000 * sample_s:.1f} ms per sample")


def _sample_s(batch: Batch) -> float:
    """Seconds of an ordinary forward pass per sample of a batch, the second time."""
    seconds = 0.0
    for _ in range(2):
        synchronize(batch.model)
        begun = time.perf_counter()
        with torch.inference_mode():
            batch.model(**batch.inputs, use_cache=False, logits_to_keep=1)
        synchronize(batch.model)
        seconds = time.perf_counter() - begun
    return seconds / len(batch.ids)


def _shape(batch: Batch) -> PromptShape:
    """Mean lengths of a batch's prompts."""
    system, visual, text = (round(mean) for mean in batch.lengths().double().mean(dim=0).tolist())
    return PromptShape(visual_tokens=visual, text_tokens=text, system_tokens=system)
