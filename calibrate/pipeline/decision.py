"""Decision and evaluation on one loaded model, with the time that is left told as they go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from calibrate.deciding.decide import Certify, ChosenPlan, Effort, decide
from calibrate.deciding.evaluate import evaluate
from calibrate.deciding.executed import Evaluation
from calibrate.deciding.ladder import LARGEST
from calibrate.deciding.passes import ROWS, evaluation_passes, proof_passes, search_left, search_passes
from calibrate.deciding.search import FIRST
from calibrate.deciding.split import Split
from calibrate.deciding.trials import Trials
from calibrate.inputs.batches import Batches, Watch
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import Model
from calibrate.inputs.samples import SampleSet
from calibrate.pipeline.options import Options
from calibrate.probes.base import DEFAULT, unattended
from calibrate.progress import Progress, spell_time
from calibrate.running.controls import beyond_floor
from calibrate.running.execute import able
from calibrate.running.forced import Answer
from calibrate.running.losses import ALONG_ANSWER, LossRunner, cut_off, suited
from calibrate.running.shown import shown
from calibrate.running.timing import prefill_ms
from planner.evidence import LossName
from planner.profile import Profile
from planner.report.samples import Shown
from planner.schedule import Schedule
from planner.spec import ModelSpec

#: Losses of what the search executed, beside the states of probes.
TRIALS = "trials.json"
#: Tasks, as they are called where the time left is shown.
_DENSE, _SEARCH, _PROOF, _EVALUATION = "dense answers", "searching", "proving", "evaluating"


class Deciding:
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
        progress.expect(_DENSE, len(look))
        self._expect_rest(evaluation, options.demand.settled)
        with Clock(self.seconds, "dense answers"):
            self._settle(look.answers())
        decide_s, evaluate_s = self._expect_rest(evaluation, self._loss)
        progress.say(
            f"decide: about {options.measure} schedules on {FIRST} to {len(look)} samples, and up to {LARGEST} on "
            f"{len(self.split.certify)} others, about {spell_time(decide_s)}"
        )
        if evaluation is not None:
            progress.say(
                f"evaluate: {ROWS} policies and controls on {len(evaluation)} samples, about {spell_time(evaluate_s)}"
            )

    def _expect_rest(self, evaluation: SampleSet | None, loss: LossName | None) -> tuple[float, float]:
        """Seconds of the decision and of the evaluation, at the pace of the dense answers so far."""
        options, look, progress = self.options, self._look, self.progress
        # The floor runs twice.
        decide_s = progress.expect(_SEARCH, 2 * len(look) + search_passes(options.measure, len(look)), like=_DENSE)
        decide_s += progress.expect(_PROOF, proof_passes(len(self.split.certify)), like=_SEARCH)
        if evaluation is None:
            return decide_s, 0.0
        passes = evaluation_passes(len(evaluation), loss in ALONG_ANSWER, False, options.timing_rounds)
        return decide_s, progress.expect(_EVALUATION, passes, like=_PROOF)

    def decision(self, profile: Profile) -> ChosenPlan:
        """The plan, and its proof."""
        options, split = self.options, self.split
        look = self._look.judged_by(self._loss, self._look.batches.watched(self._watch(_SEARCH)))
        trials = Trials(look, self._kept_trials(), self._run(look, profile), lambda ran: self._tell_search(trials))
        with Clock(self.seconds, "decide"):
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
                    able=able(self.model),
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
        passes = evaluation_passes(len(samples), decision.loss in ALONG_ANSWER, dense, rounds)
        self.progress.left_now(_EVALUATION, passes)
        with Clock(self.seconds, "evaluate"):
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


class Clock:
    """Adds the seconds of a block to a table."""

    def __init__(self, table: dict[str, float], name: str) -> None:
        self.table, self.name = table, name

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.table[self.name] = time.perf_counter() - self.begun
