"""Influence proposes, measurement decides.

The calibration samples are split in two. On the *proposal* split the filter, exit, shallow rule and budget that
influence and the masking curves suggest are executed, alone and then together, and the cheapest combinations that still
answer like the dense model become finalists. On the *validation* split finalists are executed in order of cost, and the
cheapest whose agreement holds is the plan. Nothing of the validation split is ever used to propose. If no finalist
holds, the plan is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from calibrate.deciding.search import Candidate, Limits, Point, Search, Trial
from calibrate.probes.masking import contradictions
from calibrate.probes.stats import proportion
from calibrate.running.trial import Agreement, TrialRunner
from planner.errors import InputError
from planner.policies import AnyPolicy, parse
from planner.profile import Profile
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec


@dataclass(frozen=True)
class ChosenPlan:
    """The chosen policy, every trial on the way, and what a reader should know."""

    policy: AnyPolicy
    schedule: Schedule
    agreement: Agreement | None
    limits: Limits
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> dict[str, Any] | None:
        """The agreement on the validation split with its 95 % interval; None for the dense fallback."""
        return None if self.agreement is None else proportion(self.agreement.hits, self.agreement.n)


def decide(
    profile: Profile,
    spec: ModelSpec,
    proposal: TrialRunner,
    validation: TrialRunner,
    limits: Limits | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> ChosenPlan:
    """The cheapest candidate that agrees with the dense model on samples that did not propose it.

    Args:
        profile: of the proposal split and then the validation split; of its influence rows only the former's are
            read, and its masking curves must come from them.
        progress: told about each trial.

    Raises:
        InputError: the validation split is too small to show the agreement with the confidence.
    """
    wanted = limits or Limits()
    if wanted.misses(len(validation)) < 0:
        raise InputError(
            f"{len(validation)} validation samples cannot show an agreement of {wanted.agreement:g} "
            f"with confidence {wanted.confidence:g}, even if all agree",
            "Give more samples, or ask for less",
        )
    search = Search(profile, spec, proposal, wanted, progress)
    notes = [*search.notes, *_notes(profile, wanted)]
    found = _cheapest_that_holds(search, validation)
    refusals = dict.fromkeys((*proposal.refusals, *validation.refusals))
    notes += [f"candidates that cannot be executed were left out: {cause}" for cause in refusals]
    if found is not None:
        chosen, schedule, answers = _trimmed(search, validation, *found)
        return ChosenPlan(chosen, schedule, answers, wanted, tuple(search.trials.values()), tuple(notes))
    notes.append(
        f"no candidate kept {wanted.agreement:g} of the dense model's answers with confidence {wanted.confidence:g} "
        f"on {len(validation)} validation samples: the plan is dense"
    )
    nothing = dense(spec.layers)
    return ChosenPlan(parse("dense"), nothing, None, wanted, tuple(search.trials.values()), tuple(notes))


def _trimmed(
    search: Search, validation: TrialRunner, candidate: Candidate, answers: Agreement
) -> tuple[AnyPolicy, Schedule, Agreement]:
    """The chosen candidate in its window's trimmed form, if its answers survive that."""
    if isinstance(candidate, Point) and (trimmed := candidate.window.trimmed(search.member(candidate))) is not None:
        schedule, allowed = search.schedule_of(trimmed), search.limits.misses(len(validation))
        found = validation.whole_answer(schedule, search.limits.answer_tokens, allowed)
        search.progress(f"validation: {trimmed}: {found.hits} of {found.n} answers kept")
        if found.misses <= allowed:
            return trimmed, schedule, found
    return search.policy(candidate), search.schedule(candidate), answers


class _Validation:
    """The validation split: whole answers of candidates, each executed once, at most so many candidates."""

    def __init__(self, search: Search, bench: TrialRunner) -> None:
        self.search, self.bench, self.limits = search, bench, search.limits
        self.allowed = self.limits.misses(len(bench))
        self.seen: dict[str, Agreement] = {}

    def holds(self, candidate: Candidate) -> bool:
        """Whether the candidate's answers stay the dense model's often enough; False once the trials are used up."""
        if not self.search.good(candidate):
            return False
        trial = self.search.run(candidate)
        if trial.policy not in self.seen:
            if len(self.seen) >= self.limits.validation_trials:
                return False
            schedule = self.search.schedule(candidate)
            found = self.bench.whole_answer(schedule, self.limits.answer_tokens, self.allowed)
            self.seen[trial.policy] = found
            self.search.record(replace(trial, validation=found))
            self.search.progress(f"validation: {trial.policy}: {found.hits} of {found.n} answers kept")
        return self.seen[trial.policy].misses <= self.allowed

    def failed(self, candidate: Candidate) -> bool:
        """Whether the candidate is known not to hold."""
        found = self.seen.get(str(self.search.policy(candidate)))
        return found is not None and found.misses > self.allowed

    def smallest_budget(self, start: Candidate, best: Candidate | None) -> Candidate | None:
        """The smallest budget that holds, `start`'s or by bisection, among those that cost less than `best`; a policy
        that was proposed as it is has one budget."""
        search = self.search
        if not isinstance(start, Point):
            return start if self.holds(start) else None
        budgets = range(start.budget, len(search.budgets))
        options = [point for budget in budgets if search.cheaper(point := replace(start, budget=budget), best)]
        if not options or self.failed(replace(start, budget=budgets[-1])):
            return None
        if self.holds(options[0]):
            return options[0]
        if not self.holds(options[-1]):
            return None
        low, high = 0, len(options) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.holds(options[middle]):
                high = middle
            else:
                low = middle
        return options[high]


def _cheapest_that_holds(search: Search, validation: TrialRunner) -> tuple[Candidate, Agreement] | None:
    """Branch and bound in order of cost: over the finalists, then over what they retreat to."""
    trials = _Validation(search, validation)
    best: Candidate | None = None
    finalists = sorted(search.finalists(), key=search.order)
    points = [finalist for finalist in finalists if isinstance(finalist, Point)]
    retreats = dict.fromkeys(other for point in points for other in search.retreats(point))
    for start in (*finalists, *sorted(retreats, key=lambda point: (search.flops(point), point.rank_by))):
        if search.cheaper(start, best):
            best = trials.smallest_budget(start, best) or best
    return None if best is None else (best, trials.seen[str(search.policy(best))])


def _notes(profile: Profile, limits: Limits) -> list[str]:
    """Where the papers' thresholds do not fit the model, and where the masking curves contradict what they suggest."""
    influence = profile.probes.get("influence")
    if influence is None:
        return []
    notes = []
    threshold = influence.settings["filter_cos"][0]
    silent = influence.values["stages"][f"{threshold:g}"]["absolute"]["never_filtered"]
    if 2 * silent > influence.n:
        notes.append(
            f"the published threshold (cosine below {threshold:g}) never fires on {silent} of {influence.n} samples: "
            "the plan rests on masking curves and executed candidates"
        )
    if "masking" in profile.probes:
        notes += contradictions(profile.probes["masking"], influence, limits.agreement)
    return notes
