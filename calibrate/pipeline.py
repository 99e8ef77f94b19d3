"""The whole calibration in one function: load, measure, decide, evaluate. `plan calibrate` runs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from calibrate.deciding.decide import Certify, ChosenPlan, Effort, decide
from calibrate.deciding.demand import Demand
from calibrate.deciding.evaluate import evaluate
from calibrate.deciding.executed import Evaluation
from calibrate.deciding.halving import FIRST
from calibrate.deciding.ladder import LARGEST
from calibrate.deciding.objective import Objective
from calibrate.deciding.passes import ROWS, evaluation_passes, proof_passes, search_left, search_passes
from calibrate.deciding.split import Split, by_picture
from calibrate.deciding.trials import Trials
from calibrate.inputs.batches import Batches, Watch
from calibrate.inputs.bundled import reference
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import Model, identify, spec_of
from calibrate.inputs.load import load
from calibrate.inputs.load_options import LoadOptions
from calibrate.inputs.overlap import tell_overlap
from calibrate.inputs.samples import Columns, SampleSet, load_samples
from calibrate.measuring.measure import Job
from calibrate.measuring.reuse import take_profile
from calibrate.measuring.run import calibrate_job
from calibrate.probes.base import DEFAULT, build_probes, check_probes, leave_out, probe_names, unattended
from calibrate.probes.masking import MaskingProbe
from calibrate.progress import Progress, spell_time
from calibrate.ranks import Ranks, leave, world
from calibrate.running.controls import beyond_floor
from calibrate.running.execute import can_run
from calibrate.running.forced import Answer
from calibrate.running.losses import LossRunner, cut_off, suited
from calibrate.running.shown import shown
from calibrate.running.timing import prefill_ms
from planner.errors import InputError
from planner.profile import Profile
from planner.report.samples import Shown
from planner.schedule import Schedule
from planner.spec import ModelSpec

#: Losses of what the search executed, beside the states of probes.
TRIALS = "trials.json"
#: Tasks, as they are called where the time left is shown.
_DENSE, _SEARCH, _PROOF, _EVALUATION = "dense answers", "searching", "proving", "evaluating"
#: Losses that answers alone do not tell.
_ALONG_ANSWER = ("tokens", "nll")


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
        demand, objective: what is asked of a plan, and what it should save.
        measure: schedules that the search may execute.
        answer_tokens: longest answer.
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
    demand: Demand = field(default_factory=Demand)
    objective: Objective = field(default_factory=Objective)
    measure: int = 160
    answer_tokens: int = 16
    decide: bool = True
    timing_rounds: int = 15
    verbose: bool = False


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
    samples, evaluation = _samples(options)
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

    with _Clock(seconds, "load"):
        loaded = load(options.model, options.loading, check)
    known = identify(loaded.model, loaded.id, loaded.revision, options.full_digest)
    encoder = Encoder(loaded.processor, known.visual_ids)
    profile: Profile | None = None
    if options.profile is not None and ranks.first:
        profile = take_profile(options.profile, known, samples, encoder)
        _check_masking(profile.probes["masking"].n if "masking" in profile.probes else 0, split)
    deciding: _Deciding | None = None
    if split is not None and ranks.first and options.shard[1] == 1:
        deciding = _Deciding(options, loaded.model, known, encoder, split, seconds, progress)
        deciding.expect(evaluation)
    if options.profile is None:
        with _Clock(seconds, "profile"):
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


class _Deciding:
    """Decision and evaluation on one loaded model.

    Attributes:
        answer_tokens: mean length of the dense answers, once there are some.
    """

    def __init__(
        self, options: Options, model: Any, known: Model, encoder: Encoder, split: Split, seconds: dict[str, float],
        progress: Progress,
    ) -> None:  # fmt: skip
        self.options, self.model, self.known, self.encoder = options, model, known, encoder
        self.split, self.seconds, self.progress = split, seconds, progress
        self.answer_tokens: float | None = None
        self._look = self._runner(SampleSet((*split.propose, *split.select), split.propose.source), _DENSE)
        self._tell = progress.say if options.verbose else lambda line: None

    def expect(self, evaluation: SampleSet | None) -> None:
        """Say what decision and evaluation will take, by the time of the dense answers that the search needs anyway."""
        options, look, progress = self.options, self._look, self.progress
        with _Clock(self.seconds, "dense answers"):
            self._settle(look.answers())
        certify, floor = len(self.split.certify), 2 * len(look)
        about_s = progress.expect(_SEARCH, floor + search_passes(options.measure, len(look)), like=_DENSE)
        about_s += progress.expect(_PROOF, proof_passes(certify), like=_SEARCH)
        progress.say(
            f"decide: about {options.measure} schedules on {FIRST} to {len(look)} samples, and up to {LARGEST} on "
            f"{certify} others, about {spell_time(about_s)}"
        )
        if evaluation is not None:
            passes = evaluation_passes(len(evaluation), self._loss in _ALONG_ANSWER, False, options.timing_rounds)
            about_s = progress.expect(_EVALUATION, passes, like=_PROOF)
            progress.say(
                f"evaluate: {ROWS} policies and controls on {len(evaluation)} samples, about {spell_time(about_s)}"
            )

    def decision(self, profile: Profile) -> ChosenPlan:
        """The plan, and its proof."""
        options, split = self.options, self.split
        look = self._look.judged_by(self._loss, self._look.batches.watched(self._watch(_SEARCH)))
        trials = Trials(look, self._kept_trials(), self._run(look, profile), lambda ran: self._tell_search(trials))
        with _Clock(self.seconds, "decide"):
            notes = [*self._cut_off, *beyond_floor(look, options.demand.limit), *_unmeasured(profile, self.known.spec)]
            try:
                decision = decide(
                    profile,
                    self.known.spec,
                    trials,
                    Certify(
                        self._runner(split.certify, _PROOF).judged_by(look.loss),
                        split.pictures,
                        tuple(sample.kind for sample in split.certify),
                    ),
                    options.demand,
                    options.objective,
                    Effort(options.measure, options.answer_tokens, options.seed, self._timer(look), self._tell),
                    able=partial(can_run, self.model),
                )
            except KeyboardInterrupt:
                trials.save()
                raise
        self.progress.left_now(_SEARCH, 0)
        self.progress.left_now(_PROOF, 0)
        decision = replace(decision, notes=(*notes, *decision.notes))
        state = "" if decision.proven or decision.schedule.empty else ", which is not proven"
        self.progress.say(
            f"decided: {decision.policy}{state} ({decision.searched} candidates, {decision.executed} executed, "
            f"{self.seconds['decide']:.0f} s)"
        )
        for note in decision.notes:
            self.progress.say(f"note: {note}")
        return decision

    def evaluation(self, decision: ChosenPlan, samples: SampleSet) -> Evaluation:
        """The plan on samples that had no part in it."""
        rounds, dense = self.options.timing_rounds, decision.schedule.empty
        passes = evaluation_passes(len(samples), decision.loss in _ALONG_ANSWER, dense, rounds)
        self.progress.left_now(_EVALUATION, passes)
        with _Clock(self.seconds, "evaluate"):
            found = evaluate(
                self._runner(samples, _EVALUATION).judged_by(decision.loss),
                self.known.spec,
                (decision.policy, decision.schedule),
                rounds=rounds,
                progress=self._tell,
            )
        self.progress.left_now(_EVALUATION, 0)
        return found

    def shown(self, decision: ChosenPlan, found: Evaluation, samples: SampleSet) -> tuple[Shown, ...]:
        """The samples on which the plan does worst; none of a dense plan."""
        dense, planned = found.answers["dense"], found.answers[str(decision.policy)]
        asked = [(samples[i], dense[i], planned[i], same) for i, same in found.worst]
        return tuple(shown(self.model, self.encoder, self.known, decision.schedule, asked, self.options.seed))

    def _settle(self, answers: list[Answer]) -> None:
        """What the dense answers decide."""
        self.answer_tokens = sum(answer.length for answer in answers) / len(answers)
        self._loss = self.options.demand.settled or suited(answers)
        self._cut_off = cut_off(answers, self.options.answer_tokens)

    def _tell_search(self, trials: Trials) -> None:
        """The search executed something."""
        self.progress.left_now(_SEARCH, search_left(trials, self.options.measure))

    def _watch(self, task: str) -> Watch:
        return partial(self.progress.step, task)

    def _runner(self, samples: SampleSet, task: str) -> LossRunner:
        options = self.options
        batches = Batches(samples, self.encoder, self.model, options.batch_size, self._watch(task))
        return LossRunner(batches, answer_tokens=options.answer_tokens, metric=options.demand.judge, seed=options.seed)

    def _kept_trials(self) -> Path | None:
        return None if self.options.out is None else self.options.out / TRIALS

    def _run(self, look: LossRunner, profile: Profile) -> dict[str, Any]:
        """What losses in the file belong to."""
        return {
            "profile": profile.profile_sha256,
            "samples": look.batches.samples.digest,
            "loss": look.loss,
            "metric": look.metric.name,
            "answer_tokens": look.answer_tokens,
            "seed": look.seed,
        }

    def _timer(self, look: LossRunner) -> Callable[[list[Schedule]], list[float]]:
        first = look.batches.encoder([look.batches.samples[0]])

        def timed(schedules: list[Schedule]) -> list[float]:
            return prefill_ms(self.model, look.batches.place(first), schedules, max(self.options.timing_rounds, 1))

        return timed


def _unmeasured(profile: Profile, spec: ModelSpec) -> list[str]:
    """A note, where layers have no attention that probes could look at."""
    gone = [name for name in DEFAULT if name not in profile.probes]
    if not gone or not spec.decoder.recurrent:
        return []
    return [f"not measured: {', '.join(gone)}, each of which {unattended(spec)}"]


def _samples(options: Options) -> tuple[SampleSet, SampleSet | None]:
    """Calibration samples, drawn and shuffled by the seed, and evaluation samples."""
    bundled = reference(options.model)
    evaluation: str | Path | None = options.evaluation_data
    if options.data is not None:
        data: str | Path = options.data
    elif bundled is not None:
        data, evaluation = bundled.calibration, evaluation or bundled.evaluation
    else:
        raise InputError("there are no bundled samples for this model", "Give --data: JSONL, image folder, datasets id")
    reading: dict[str, Any] = {"prompt": options.prompt, "columns": options.columns, "split": options.split}
    # Samples about one picture stand together, so that the parts of the split are stretches of the set.
    samples = by_picture(load_samples(data, **reading).choose(options.num_samples, options.seed))
    if evaluation is None:
        return samples, None
    return samples, load_samples(evaluation, **reading).choose(options.evaluation_samples, options.seed)


class _Clock:
    """Adds the seconds of a block to a table."""

    def __init__(self, table: dict[str, float], name: str) -> None:
        self.table, self.name = table, name

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.table[self.name] = time.perf_counter() - self.begun
