"""The whole calibration in one function: load, measure, decide, evaluate. `plan calibrate` runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from calibrate.deciding.decide import ChosenPlan
from calibrate.deciding.executed import Evaluation
from calibrate.deciding.split import Split
from calibrate.inputs.encode import Encoder
from calibrate.inputs.half_precision import slow_half_precision
from calibrate.inputs.identity import identify, spec_of
from calibrate.inputs.load import load
from calibrate.inputs.overlap import tell_overlap
from calibrate.inputs.samples import SampleSet
from calibrate.measuring.measure import Job
from calibrate.measuring.reuse import take_profile
from calibrate.measuring.run import calibrate_job
from calibrate.pipeline.decision import Clock, Deciding
from calibrate.pipeline.options import Options, chosen_samples
from calibrate.probes.base import DEFAULT, build_probes, check_probes, leave_out, probe_names, unattended
from calibrate.probes.masking import MaskingProbe
from calibrate.progress import Progress
from calibrate.ranks import Ranks, leave, world
from planner.errors import InputError
from planner.profile import Profile
from planner.report.samples import Shown


@dataclass(frozen=True)
class Outcome:
    """What came out. Fields are None where a step was not asked for, or on ranks and shards that only measure.

    Attributes:
        split: of the calibration samples.
        asked: the evaluation's samples; `shown` are some of them, those on which the plan does worst first.
        answer_tokens: mean length of the dense model's answers; `longest_answer`: where they were cut off.
    """

    profile: Profile | None
    decision: ChosenPlan | None
    evaluation: Evaluation | None
    seconds: dict[str, float]
    split: Split | None = None
    asked: SampleSet | None = None
    answer_tokens: float | None = None
    longest_answer: int | None = None
    shown: tuple[Shown, ...] = ()


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
    with Progress(say, watched=ranks.first) as progress:
        return _steps(options, ranks, progress)


def _steps(options: Options, ranks: Ranks, progress: Progress) -> Outcome:
    seconds: dict[str, float] = {}
    say = progress.say
    samples, evaluation = chosen_samples(options)
    tell_overlap(samples, evaluation, say)
    split = _split(options, samples, say)
    probes = build_probes(options.probes, _settings(options, split))  # refuses a wrong setting before a model is loaded

    def check(config: Any) -> None:
        if options.profile is not None:
            return
        # What was asked for by name is refused instead.
        spec, unasked = spec_of(config), options.probes in (DEFAULT, probe_names())
        for name in leave_out(probes, spec) if unasked else ():
            say(f"{name}: not measured, it {unattended(spec)}")
        check_probes(probes, config, spec, len(samples))

    with Clock(seconds, "load"):
        loaded = load(options.model, options.loading, check)
    slow = slow_half_precision(loaded.model)
    if slow is not None:
        say(f"note: {slow}")
    known = identify(loaded.model, loaded.id, loaded.revision, options.full_digest)
    encoder = Encoder(loaded.processor, known.visual_ids)
    profile: Profile | None = None
    if options.profile is not None and ranks.first:
        profile = take_profile(options.profile, known, samples, encoder)
        _check_masking(profile.probes["masking"].n if "masking" in profile.probes else 0, split)
    deciding: Deciding | None = None
    if split is not None and ranks.first and options.shard[1] == 1:
        deciding = Deciding(options, loaded.model, known, encoder, split, seconds, progress)
        deciding.expect(evaluation)
    if options.profile is None:
        with Clock(seconds, "profile"):
            profile = calibrate_job(
                Job(loaded.model, encoder, samples, known, probes),
                batch_size=options.batch_size,
                out=options.out,
                resume=options.resume,
                shard=options.shard,
                progress=progress,
            )
        if profile is not None and options.out is not None:
            profile.save(options.out / "profile.json")  # whatever becomes of the decision
    if profile is None or deciding is None:
        return Outcome(profile, None, None, seconds)
    decision = deciding.decision(profile)
    found = None if evaluation is None else deciding.evaluation(decision, evaluation)
    return Outcome(
        profile,
        decision,
        found,
        seconds,
        split,
        evaluation,
        deciding.answer_tokens,
        options.answer_tokens,
        () if found is None or evaluation is None else deciding.shown(decision, found, evaluation),
    )


def _split(options: Options, samples: SampleSet, say: Callable[[str], None]) -> Split | None:
    """The samples in three parts, if a decision is to follow; what they can prove is told.

    Raises:
        InputError: they cannot prove what is asked for.
    """
    if not options.decide:
        return None
    split = options.demand.split(samples)
    options.demand.check(samples, split)
    for line in options.demand.told(samples, split):
        say(line)
    return split


def _settings(options: Options, split: Split | None) -> dict[str, dict[str, Any]]:
    """Probe settings: where a decision follows, masking curves and thresholds are those of the samples that propose.

    Raises:
        InputError: a decision is to follow, and they were asked to see more samples.
    """
    settings = {name: dict(chosen) for name, chosen in options.settings.items()}
    if "influence" in options.probes and split is not None:
        influence = settings.setdefault("influence", {})
        influence["proposing"] = min(int(influence.get("proposing", len(split.propose))), len(split.propose))
    if "masking" in options.probes and split is not None:
        masking = settings.setdefault("masking", {})
        masking.setdefault("samples", min(MaskingProbe.default_samples, len(split.propose)))
        if options.profile is None:
            _check_masking(masking["samples"], split)
    return settings


def _check_masking(measured: int, split: Split | None) -> None:
    """Masking curves propose candidates, so they must not see samples that certify.

    Raises:
        InputError: they do.
    """
    if split is not None and measured > len(split.propose) + len(split.select):
        raise InputError(
            f"masking curves over {measured} samples would see samples that certify: {len(split.propose)} propose",
            f"Measure them with --set masking.samples={len(split.propose)}, or give more samples",
        )
