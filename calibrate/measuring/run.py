"""Measure: all one-pass probes in one forward pass per batch, then the probes that run the model themselves.

The unit of work is a batch of `batch_size` consecutive samples of the whole set, whoever measures it: shards and ranks
take turns over batches, so every sample is computed in the same company and gives the same numbers, however the work
is split, interrupted or resumed. Memory is the model, one batch, one layer's attention rows, and the probes' rows: a
few kilobytes a sample, nothing of order n^2. Rows and the peak are stated at the end.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from calibrate.inputs.encode import Encoder, input_device
from calibrate.inputs.identity import identify
from calibrate.inputs.overlap import questions_of
from calibrate.inputs.samples import SampleSet
from calibrate.measuring.estimate import announce
from calibrate.measuring.measure import Job, measure
from calibrate.measuring.state import SUFFIX, absorb, check_headers, load_state, save_state, shared_header, tables
from calibrate.probes.base import DEFAULT, Probe, build_probes, check_probes
from calibrate.probes.prompt_shape import SEGMENTS
from calibrate.progress import Progress
from calibrate.ranks import Ranks, world
from calibrate.running.memory import peak_bytes
from planner.document import digest
from planner.errors import CalibrationError, InputError
from planner.profile import ModelIdentity, ProbeResult, Profile, PromptShape, SampleIdentity


def calibrate(
    model: Any,
    processor: Any,
    samples: SampleSet,
    *,
    model_id: str = "model",
    revision: str | None = None,
    probes: Sequence[str] = DEFAULT,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Profile | None:
    """Profile a loaded model on samples.

    Args:
        settings: constructor arguments by probe name.
        options: as in `calibrate_job`.

    Returns:
        As `calibrate_job`.

    Raises:
        UnsupportedModelError: no vision-language model, or of a family whose facts are not known.
        InputError: an unknown probe or setting.
        PlannerError: what `calibrate_job` raises.
    """
    known = identify(model, model_id, revision)
    encoder = Encoder(processor, known.visual_ids)
    return calibrate_job(Job(model, encoder, samples, known, build_probes(probes, settings)), **options)


def calibrate_job(
    job: Job,
    *,
    batch_size: int = 8,
    out: Path | None = None,
    resume: bool = False,
    shard: tuple[int, int] = (0, 1),
    echo: Any = None,
    progress: Progress | None = None,
) -> Profile | None:
    """Bring a job's probes up to date on all its samples, and summarise them.

    Args:
        out: folder for the state (needed to resume, and for shards).
        resume: take over what states in `out` hold.
        shard: ``(i, n)`` measures every n-th batch from the i-th; the state is the result, united by `merge_states`.
        echo: prints a line (default: to stderr, on the first rank).
        progress: that of a longer work of which this is a part; it prints the lines then.

    Returns:
        The profile; None on ranks other than 0, and for one shard of several.

    Raises:
        CalibrationError: NaN activations (layer and sample are named), a damaged or foreign state, ranks that disagree.
        InputError: invalid arguments, or settings that are impossible on this model or these samples.
        SampleError: a sample cannot be read.
    """
    ranks, total = world(), len(job.samples)
    _check(job.model, batch_size, shard, ranks, out, resume)
    check_probes(job.probes, job.known.parts.model.config, job.known.spec, total)
    header = _header(job, batch_size)
    ranks.agree(digest(shared_header(header)), "samples, settings or weights")
    say = echo if echo is not None else lambda line: print(line, file=sys.stderr)
    own = Progress(say if ranks.first else lambda line: None, watched=ranks.first)
    with nullcontext(progress) if progress is not None else own as watched:
        _bring_up_to_date(job, header, watched, batch_size, out, resume, shard, ranks)
    for gathered in ranks.gather({name: probe.table for name, probe in job.probes.items()})[1:]:
        absorb(job.probes, gathered)
    if not ranks.first or shard[1] > 1:
        return None
    return _profile(header, job.probes)


def _bring_up_to_date(
    job: Job, header: dict[str, Any], progress: Progress, batch_size: int, out: Path | None, resume: bool,
    shard: tuple[int, int], ranks: Ranks,
) -> None:  # fmt: skip
    """This process's part of the measurements."""
    total = len(job.samples)
    if resume and out is not None:
        _take_over(out, header, job.probes, progress.say)
    units = [range(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]
    mine = [unit for turn, unit in enumerate(units[shard[0] :: shard[1]]) if turn % ranks.size == ranks.rank]
    name = f"{shard[0]}-of-{shard[1]}" + (f"-rank{ranks.rank}-of-{ranks.size}" if ranks.size > 1 else "")
    if ranks.first:
        announce(job, mine, ranks.size, progress)
    save = None if out is None else partial(save_state, out / f"{name}{SUFFIX}", header, job.probes)
    measure(job, mine, save, progress)
    _tell_spent(job, progress.say)


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


def _check(model: Any, batch_size: int, shard: tuple[int, int], ranks: Ranks, out: Path | None, resume: bool) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"shard {index}/{count} does not exist", "Shards are 0/n to n-1/n")
    if batch_size < 1:
        raise InputError(f"a batch cannot hold {batch_size} samples", "Give 1 or more")
    if out is None and (resume or count > 1):
        raise InputError("a shard or a resumed run needs a folder for its state", "Give --output")
    if ranks.size > 1 and getattr(model, "hf_device_map", None):
        raise InputError(
            "device_map splits the model over the devices that the other ranks use too",
            "Use several ranks, or device_map, not both",
        )


def _header(job: Job, batch_size: int) -> dict[str, Any]:
    """Everything a profile needs besides rows, and everything that must be equal for rows to be united."""
    samples, model = job.samples, job.model
    return {
        "model": job.known.identity.model_dump(mode="json"),
        "samples": {
            "digest": samples.digest,
            "n": len(samples),
            "source": Path(samples.source).name,
            "questions": questions_of(samples),
        },
        "processor": job.encoder.settings(),
        "probes": list(job.probes),
        "settings": {name: probe.settings for name, probe in job.probes.items()},
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
            "device": input_device(model).type,
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


def _tell_spent(job: Job, say: Any) -> None:
    for name, seconds in job.timing.probes_s.items():
        say(f"{name}: {seconds:.1f} s")
    if job.timing.forward_s:
        say(f"shared forward passes: {job.timing.forward_s:.1f} s")
    rows, peak = sum(probe.table.nbytes for probe in job.probes.values()), peak_bytes(input_device(job.model))
    held = "" if peak is None else f", {peak / 2**20:.0f} MiB at the peak"
    say(f"memory: {rows / 2**20:.1f} MiB of rows{held}")


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
