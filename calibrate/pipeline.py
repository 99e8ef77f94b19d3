"""The whole calibration in one function: load, measure, decide, evaluate. `plan calibrate` runs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrate.deciding.decide import ChosenPlan, decide
from calibrate.deciding.evaluate import Evaluation, evaluate
from calibrate.deciding.search import Limits
from calibrate.inputs.batches import Batches
from calibrate.inputs.bundled import reference_path
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import Model, identify, spec_of
from calibrate.inputs.load import load
from calibrate.inputs.load_options import LoadOptions
from calibrate.inputs.overlap import tell_overlap
from calibrate.inputs.samples import Columns, SampleSet, load_samples
from calibrate.measuring.measure import Job
from calibrate.measuring.reuse import take_profile
from calibrate.measuring.run import calibrate_job
from calibrate.probes.base import DEFAULT, build_probes, check_probes
from calibrate.probes.masking import MaskingProbe
from calibrate.ranks import Ranks, leave, world
from calibrate.running.losses import LossRunner
from calibrate.running.trial import TrialRunner
from planner.errors import InputError
from planner.profile import Profile

#: Share of the calibration samples in the proposal split; the others are the validation split.
PROPOSING_SHARE = 0.25
#: A validation split smaller than this cannot show an agreement of 0.98 with any confidence.
LEAST_SAMPLES = 16


@dataclass(frozen=True)
class Options:
    """All options of `plan calibrate`.

    Attributes:
        model: hub id or directory; None for the bundled reference model.
        data: JSONL, image folder or `datasets` id; None for the reference model's calibration set.
        evaluation_data: the same for the final comparison; None for the reference model's test set, and for a
            user's model no evaluation.
        prompt: for image folders.
        num_samples: how many calibration samples are drawn by `seed`; None: all.
        loading: how the model is loaded.
        probes, settings: which, and their constructor arguments by name.
        profile: decide from this profile, measured before, in place of measuring.
        full_digest: bind the profile to every byte of the weights.
        out: folder for states; nothing is written there by this function but states.
        shard: ``(i, n)``.
        decide: False stops after the profile.
        timing_rounds: 0 leaves prefill times out.
        verbose: say what is being tried.
    """

    model: str | None = None
    data: str | None = None
    evaluation_data: str | None = None
    prompt: str | None = None
    columns: Columns = field(default_factory=Columns)
    split: str = "test"
    num_samples: int | None = None
    evaluation_samples: int | None = None
    seed: int = 0
    batch_size: int = 16
    loading: LoadOptions = field(default_factory=LoadOptions)
    probes: tuple[str, ...] = DEFAULT
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    profile: Path | None = None
    out: Path | None = None
    resume: bool = False
    full_digest: bool = False
    shard: tuple[int, int] = (0, 1)
    limits: Limits = field(default_factory=Limits)
    decide: bool = True
    timing_rounds: int = 15
    verbose: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came out. Fields are None where a step was not asked for, or on ranks and shards that only measure."""

    profile: Profile | None
    decision: ChosenPlan | None
    evaluation: Evaluation | None
    seconds: dict[str, float]


def calibrate_and_plan(options: Options, echo: Callable[[str], None] | None = None) -> Outcome:
    """Measure a model, decide on a plan, and evaluate it.

    Args:
        echo: prints a line; default: to stderr, on the first rank.

    Raises:
        PlannerError: any refusal, with cause and remedy.
    """
    ranks = world()
    try:
        return _calibrate_and_plan(options, ranks, echo)
    finally:
        leave()


def _calibrate_and_plan(options: Options, ranks: Ranks, echo: Callable[[str], None] | None) -> Outcome:
    say = echo if echo is not None else lambda line: print(line, file=sys.stderr)
    say = say if ranks.first else lambda line: None
    seconds: dict[str, float] = {}
    samples, evaluation = _samples(options)
    tell_overlap(samples, evaluation, say)
    settings = _settings(options, samples)
    probes = build_probes(options.probes, settings)  # refuses a wrong setting before a model is loaded

    def check(config: Any) -> None:
        if options.profile is None:
            check_probes(probes, config, spec_of(config), len(samples))

    with _Clock(seconds, "load"):
        loaded = load(options.model, options.loading, check)
    known = identify(loaded.model, loaded.id, loaded.revision, options.full_digest)
    encoder = Encoder(loaded.processor, known.visual_ids)
    profile: Profile | None = None
    if options.profile is None:
        with _Clock(seconds, "profile"):
            profile = calibrate_job(
                Job(loaded.model, encoder, samples, known, probes),
                batch_size=options.batch_size,
                out=options.out,
                resume=options.resume,
                shard=options.shard,
                echo=say,
            )
    elif ranks.first:
        profile = take_profile(options.profile, known, samples, encoder)
        _check_masking(profile.probes["masking"].n if "masking" in profile.probes else 0, samples)
    if profile is None or not options.decide:
        return Outcome(profile, None, None, seconds)
    return _plan(options, loaded.model, known, encoder, profile, samples, evaluation, seconds, say)


def _settings(options: Options, samples: SampleSet) -> dict[str, dict[str, Any]]:
    """Probe settings, with masking curves on the proposal split only where a decision may follow, now or later.

    Raises:
        InputError: a decision is to follow, and the curves were asked to see more samples.
    """
    settings = {name: dict(chosen) for name, chosen in options.settings.items()}
    if "masking" in options.probes and len(samples) >= LEAST_SAMPLES:
        masking = settings.setdefault("masking", {})
        masking.setdefault("samples", min(MaskingProbe.default_samples, _proposal_size(samples)))
        if options.decide and options.profile is None:
            _check_masking(masking["samples"], samples)
    return settings


def _check_masking(measured: int, samples: SampleSet) -> None:
    """Masking curves propose candidates, so they must not see the validation split."""
    proposal = _proposal_size(samples)
    if measured > proposal:
        raise InputError(
            f"masking curves over {measured} samples would see the validation split: the proposal split has {proposal}",
            f"Measure them with --set masking.samples={proposal}, or give more samples",
        )


def _plan(
    options: Options,
    model: Any,
    known: Model,
    encoder: Encoder,
    profile: Profile,
    samples: SampleSet,
    evaluation: SampleSet | None,
    seconds: dict[str, float],
    say: Callable[[str], None],
) -> Outcome:
    def bench(chosen: SampleSet) -> TrialRunner:
        return TrialRunner(Batches(chosen, encoder, model, options.batch_size))

    proposal, validation = samples.split(_proposal_size(samples))
    with _Clock(seconds, "decide"):
        tell = say if options.verbose else lambda line: None
        decision = decide(profile, known.spec, bench(proposal), bench(validation), options.limits, tell)
    say(f"decided: {decision.policy} ({len(decision.trials)} candidates executed, {seconds['decide']:.0f} s)")
    for note in decision.notes:
        say(f"note: {note}")
    found = None
    if evaluation is not None:
        with _Clock(seconds, "evaluate"):
            batches = Batches(evaluation, encoder, model, options.batch_size)
            found = evaluate(
                LossRunner(batches, answer_tokens=options.limits.answer_tokens, seed=options.seed),
                known.spec,
                (decision.policy, decision.schedule),
                rounds=options.timing_rounds,
                progress=tell,
            )
    return Outcome(profile, decision, found, seconds)


def _proposal_size(samples: SampleSet) -> int:
    """Size of the proposal split: the first samples."""
    return round(PROPOSING_SHARE * len(samples))


def _samples(options: Options) -> tuple[SampleSet, SampleSet | None]:
    """Calibration samples, drawn and shuffled by the seed, and evaluation samples."""
    bundled = reference_path("easy_vqa")
    if options.data is None and options.model is not None:
        raise InputError("there are no bundled samples for this model", "Give --data: JSONL, image folder, datasets id")
    reading: dict[str, Any] = {"prompt": options.prompt, "columns": options.columns, "split": options.split}
    data = bundled / "calibration.jsonl" if options.data is None else options.data
    samples = load_samples(data, **reading).choose(options.num_samples, options.seed)
    if options.decide and len(samples) < LEAST_SAMPLES:
        raise InputError(
            f"{len(samples)} samples are too few to decide on a plan", f"Give at least {LEAST_SAMPLES}, better 256"
        )
    source = options.evaluation_data
    if source is None and options.data is None:
        source = str(bundled / "test.jsonl")
    if source is None:
        return samples, None
    return samples, load_samples(source, **reading).choose(options.evaluation_samples, options.seed)


class _Clock:
    """Adds the seconds of a block to a table."""

    def __init__(self, table: dict[str, float], name: str) -> None:
        self.table, self.name = table, name

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.table[self.name] = time.perf_counter() - self.begun
