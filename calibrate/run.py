"""Measure: all one-pass probes in one forward pass per batch, then the probes that run the model themselves.

The unit of work is a batch of `batch_size` consecutive samples of the whole set, whoever measures it: shards and ranks
take turns over batches, so every sample is computed in the same company and gives the same numbers, however the work
is split, interrupted or resumed. Memory is the model, one batch, one layer's attention rows, and the probes' rows: a
few kilobytes a sample, nothing of order n^2. Rows and the peak are stated at the end.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from calibrate.encode import Encoder, to_device
from calibrate.identity import Model, identify
from calibrate.probe import DEFAULT, Batch, Capture, ExecutedProbe, OnePassProbe, Probe, build_probes
from calibrate.prompt_shape import SEGMENTS
from calibrate.ranks import Ranks, world
from calibrate.samples import SampleSet
from calibrate.state import SUFFIX, absorb, check_headers, load_state, save_state, tables
from planner.document import digest
from planner.errors import CalibrationError, InputError
from planner.profile import ModelIdentity, ProbeResult, Profile, PromptShape, SampleIdentity
from planner.runtime import observe

#: Seconds between two writings of the state: what a killed run loses at most, beside the batch at hand.
STATE_INTERVAL_S = 10.0


@dataclass
class Timing:
    """Seconds spent, for the lines shown afterwards; never part of the profile."""

    forward_s: float = 0.0
    probes_s: dict[str, float] = field(default_factory=dict)

    def add(self, probe: str, seconds: float) -> None:
        self.probes_s[probe] = self.probes_s.get(probe, 0.0) + seconds


def calibrate(
    model: Any,
    processor: Any,
    samples: SampleSet,
    *,
    model_id: str = "model",
    revision: str | None = None,
    probes: Sequence[str] = DEFAULT,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 8,
    out: Path | None = None,
    resume: bool = False,
    shard: tuple[int, int] = (0, 1),
    echo: Any = None,
) -> Profile | None:
    """Profile a model on samples.

    Args:
        settings: constructor arguments by probe name.
        out: folder for the state (needed to resume, and for shards).
        resume: take over what states in `out` hold.
        shard: ``(i, n)`` measures every n-th batch from the i-th; the state is the result, united by `merge_states`.
        echo: prints a line (default: to stderr, on the first rank).

    Returns:
        The profile; None on ranks other than 0, and for one shard of several.

    Raises:
        CalibrationError: NaN activations (layer and sample are named), a damaged or foreign state, ranks that disagree.
        InputError: arguments that make no sense.
        SampleError: a sample cannot be read.
    """
    ranks = world()
    _check(model, batch_size, shard, ranks, out, resume)
    known = identify(model, model_id, revision)
    encoder = Encoder(processor, known.visual_ids)
    chosen = build_probes(probes, settings)
    header = _header(known, samples, encoder, chosen, batch_size, model)
    ranks.agree(digest(header), "samples or settings")
    say = echo if echo is not None else lambda line: print(line, file=sys.stderr)
    say = say if ranks.first else lambda line: None
    if resume and out is not None:
        _take_over(out, header, chosen, say)
    timing = Timing()
    units = [range(start, min(start + batch_size, len(samples))) for start in range(0, len(samples), batch_size)]
    mine = [unit for turn, unit in enumerate(units[shard[0] :: shard[1]]) if turn % ranks.size == ranks.rank]
    name = f"{shard[0]}-of-{shard[1]}" + (f"-rank{ranks.rank}-of-{ranks.size}" if ranks.size > 1 else "")
    path = None if out is None else out / f"{name}{SUFFIX}"
    _announce(chosen, known.layers, len(samples), say)
    _measure(_Job(model, encoder, samples, known, chosen, timing), mine, path, header, ranks)
    for name, seconds in timing.probes_s.items():
        say(f"{name}: {seconds:.1f} s")
    if timing.forward_s:
        say(f"shared forward passes: {timing.forward_s:.1f} s")
    rows = sum(probe.table.nbytes for probe in chosen.values())
    say(f"memory: {rows / 2**20:.1f} MiB of rows, {_peak_bytes(model) / 2**20:.0f} MiB at the peak")
    for gathered in ranks.gather({name: probe.table for name, probe in chosen.items()})[1:]:
        absorb(chosen, gathered)
    if not ranks.first or shard[1] > 1:
        return None
    return _profile(header, chosen)


def merge_states(paths: Sequence[Path]) -> Profile:
    """Unite the states of shards into the profile that one process would have made.

    Raises:
        CalibrationError: states of different runs, damaged ones, or samples that no state has.
    """
    if not paths:
        raise InputError("there are no shards to merge", f"Give the *{SUFFIX} files of all shards")
    loaded = [(path, *load_state(path)) for path in paths]
    header = loaded[0][1]
    check_headers([(path, one) for path, one, _ in loaded], header)
    chosen = build_probes(header["probes"], header["settings"])
    for _, _, found in loaded:
        absorb(chosen, found)
    return _profile(header, chosen)


@dataclass
class _Job:
    model: Any
    encoder: Encoder
    samples: SampleSet
    known: Model
    probes: Mapping[str, Probe]
    timing: Timing


def _check(model: Any, batch_size: int, shard: tuple[int, int], ranks: Ranks, out: Path | None, resume: bool) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"shard {index}/{count} does not exist", "Shards are 0/n to n-1/n")
    if batch_size < 1:
        raise InputError(f"a batch of {batch_size} samples makes no sense", "Give 1 or more")
    if out is None and (resume or count > 1):
        raise InputError("a shard or a resumed run needs a folder for its state", "Give --out")
    if ranks.size > 1 and getattr(model, "hf_device_map", None):
        raise InputError(
            "device_map splits the model over the devices that the other ranks use too",
            "Use several ranks, or device_map, not both",
        )


def _header(
    known: Model, samples: SampleSet, encoder: Encoder, probes: Mapping[str, Probe], batch_size: int, model: Any
) -> dict[str, Any]:
    """Everything a profile needs besides rows, and everything that must be equal for rows to be united."""
    return {
        "model": known.identity.model_dump(mode="json"),
        "samples": {"digest": samples.digest, "n": len(samples), "source": Path(samples.source).name},
        "processor": encoder.settings(),
        "probes": list(probes),
        "settings": {name: probe.settings for name, probe in probes.items()},
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": str(model.config._attn_implementation),
            "batch_size": batch_size,
        },
        "created_with": f"vlm-planner {metadata.version('vlm-planner')}",
    }


def _take_over(out: Path, header: Mapping[str, Any], probes: Mapping[str, Probe], say: Any) -> None:
    found = [(path, *load_state(path)) for path in sorted(out.glob(f"*{SUFFIX}"))]
    check_headers([(path, one) for path, one, _ in found], header)
    for _, _, loaded in found:
        absorb(probes, loaded)
    done = {name: len(probe.table) for name, probe in probes.items() if len(probe.table)}
    say("resumed: " + (", ".join(f"{name} {count} samples" for name, count in done.items()) or "nothing to take over"))


def _announce(probes: Mapping[str, Probe], layers: int, samples: int, say: Any) -> None:
    shared = [name for name, probe in probes.items() if isinstance(probe, OnePassProbe)]
    if shared:
        say(f"{', '.join(shared)}: one forward pass over {samples} samples together")
    for name, probe in probes.items():
        if isinstance(probe, ExecutedProbe):
            count = min(samples, probe.samples)
            say(f"{name}: {probe.forwards(layers)} forward passes over {count} samples")


def _measure(job: _Job, units: Sequence[range], path: Path | None, header: Mapping[str, Any], ranks: Ranks) -> None:
    saved = time.monotonic()
    with tqdm(units, desc="calibrate", unit="batch", disable=None if ranks.first else True) as bar:
        for unit in bar:
            worked = _unit(job, unit)
            if worked and path is not None and time.monotonic() - saved > STATE_INTERVAL_S:
                save_state(path, header, job.probes)
                saved = time.monotonic()
    if path is not None:
        save_state(path, header, job.probes)


def _unit(job: _Job, unit: range) -> bool:
    """Measure one batch with every probe that has not seen it; False when there was nothing to do."""

    def waiting(probe: Probe) -> bool:
        return any(probe.wants(i) and i not in probe.table for i in unit)

    shared = {n: p for n, p in job.probes.items() if isinstance(p, OnePassProbe) and waiting(p)}
    executed = {n: p for n, p in job.probes.items() if isinstance(p, ExecutedProbe) and waiting(p)}
    if not shared and not executed:
        return False
    batches: dict[tuple[int, ...], Batch] = {}
    with torch.inference_mode():
        if shared:
            _shared_pass(job, _batch(job, tuple(unit), batches), shared)
        for name, probe in executed.items():
            # Exactly the samples the probe wants: others may be held back from it.
            batch = _batch(job, tuple(i for i in unit if probe.wants(i)), batches)
            begun = time.perf_counter()
            probe.run(batch)
            job.timing.add(name, time.perf_counter() - begun)
    return True


def _batch(job: _Job, ids: tuple[int, ...], made: dict[tuple[int, ...], Batch]) -> Batch:
    """The encoded batch of some samples, made once."""
    if ids not in made:
        samples = tuple(job.samples[i] for i in ids)
        inputs = to_device(job.encoder(samples), job.model)
        made[ids] = Batch(ids, samples, inputs, job.model, job.encoder, job.samples)
    return made[ids]


def _shared_pass(job: _Job, batch: Batch, probes: Mapping[str, OnePassProbe]) -> None:
    spent = 0.0
    norms: list[torch.Tensor] = []

    def look(view: Any) -> None:
        nonlocal spent
        capture = Capture(view, job.known.layers, batch.ids)
        norms.append(capture.influence.output_norm)
        for name, probe in probes.items():
            begun = time.perf_counter()
            probe.update(capture)
            seconds = time.perf_counter() - begun
            spent += seconds
            job.timing.add(name, seconds)

    begun = time.perf_counter()
    with observe(job.model, look):
        job.model(**batch.inputs, use_cache=False, logits_to_keep=1)
    job.timing.forward_s += time.perf_counter() - begun - spent
    _check_finite(torch.stack([norm.cpu() for norm in norms]), batch)


def _check_finite(norms: torch.Tensor, batch: Batch) -> None:
    """Refuse NaN and infinity; `norms [L, B]` of last rows' attention outputs, finite only if all they read is."""
    if not bool(torch.isfinite(norms).all()):
        layer, sample = (int(i) for i in (~torch.isfinite(norms)).nonzero()[0])
        raise CalibrationError(
            f"activations are not finite in layer {layer} for the sample {batch.samples[sample].where}",
            "Use --dtype bfloat16 or float32, or remove the sample",
        )


def _peak_bytes(model: Any) -> int:
    """Most memory held so far: of the accelerator that runs the model, else of the process."""
    if model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(model.device))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _profile(header: Mapping[str, Any], probes: Mapping[str, Probe]) -> Profile:
    total = header["samples"]["n"]
    for name, probe in probes.items():
        missing = [i for i in range(total) if probe.wants(i) and i not in probe.table]
        if missing:
            raise CalibrationError(
                f"probe {name} lacks {len(missing)} of its samples (the first is {missing[0]})",
                "Merge all shards of the run",
            )
    results: dict[str, ProbeResult] = {name: probe.result() for name, probe in probes.items()}
    profile = Profile(
        model=ModelIdentity.model_validate(header["model"]),
        samples=SampleIdentity.model_validate(header["samples"]),
        prompt=_prompt_shape(results["prompt"]),
        processor=header["processor"],
        probes=results,
        environment=header["environment"],
        created_with=header["created_with"],
    )
    return profile.with_arrays(tables(probes)).sealed()


def _prompt_shape(lengths: ProbeResult) -> PromptShape:
    means = {f"{segment}_tokens": round(lengths.values[segment]["value"]) for segment in SEGMENTS}
    return PromptShape(**means)
