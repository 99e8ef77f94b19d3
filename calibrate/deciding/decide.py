"""From a profile to a plan: search, freeze a ladder, prove it on samples that had no part in either.

The samples come in three parts (`calibrate.deciding.split`). Policies propose from the first, which masking curves see
too; the search (`calibrate.deciding.search`) runs on the first and second; the third is opened once, for the ladder
that is frozen by then (`calibrate.deciding.ladder`, `calibrate.deciding.proof`). The cheapest proven rung is the plan.
Where none is proven it is dense, unless the best effort was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrate.deciding.constraints import check_constraints, check_dense
from calibrate.deciding.demand import Demand
from calibrate.deciding.ladder import ladder
from calibrate.deciding.notes import heads_behind_exit, where_probes_disagree, why_dense
from calibrate.deciding.objective import Costing, Objective, Timer, profile_workload
from calibrate.deciding.power import allowed
from calibrate.deciding.proof import Proof, Rung, prove
from calibrate.deciding.search import Line, Search
from calibrate.deciding.space import Candidate, Space
from calibrate.deciding.trials import Losses, Trials
from calibrate.probes.stats import mean, proportion
from planner.evidence import LossName
from planner.policies import AnyPolicy, parse
from planner.profile import Profile
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec

#: Finalists that are timed where times are measured.
_TIMED = 12


@dataclass(frozen=True)
class Certify:
    """The samples of the proof.

    Attributes:
        pictures: a number for each; samples with equal numbers show one picture.
        kinds: of question.
    """

    runner: Losses
    pictures: tuple[int, ...]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A candidate that was executed on search samples.

    Attributes:
        share: of the minimised quantity, to dense.
        loss, low, high: mean over the `n` search samples that it ran on, with its 95 % interval.
        expected: the loss that is expected of it, by what its whole family lost.
        front: no executed candidate costs less and is expected to lose less.
    """

    policy: str
    share: float
    loss: float
    low: float
    high: float
    n: int
    expected: float
    front: bool


@dataclass(frozen=True)
class ChosenPlan:
    """The chosen policy, its proof, and what a reader should know.

    Attributes:
        loss: what was measured of a sample.
        proof: None where no ladder was frozen.
        trials: candidates that were executed, the cheapest first.
        searched: candidates that were costed; executed: schedules that ran; passes: on how many samples, in all.
    """

    policy: AnyPolicy
    schedule: Schedule
    demand: Demand
    objective: Objective
    loss: LossName
    proof: Proof | None
    trials: tuple[Trial, ...]
    searched: int
    executed: int
    passes: int
    notes: tuple[str, ...] = ()

    @property
    def proven(self) -> bool:
        """Whether the plan is what was proven; the dense one loses nothing."""
        return self.proof is not None and self.proof.shipped is not None


@dataclass(frozen=True)
class Effort:
    """How hard to look.

    Attributes:
        measure: schedules that the search may execute.
        answer_tokens: length of an answer, for times.
        seed: of what is drawn at random.
        timer: prefills on this machine.
        progress: told about each candidate.
    """

    measure: int = 160
    answer_tokens: int = 16
    seed: int = 0
    timer: Timer | None = None
    progress: Callable[[str], None] = field(default=lambda line: None)


def decide(
    profile: Profile,
    spec: ModelSpec,
    search: Trials,
    certify: Certify,
    demand: Demand | None = None,
    objective: Objective | None = None,
    effort: Effort | None = None,
    space: Space | None = None,
    able: Callable[[Schedule], bool] | None = None,
) -> ChosenPlan:
    """The cheapest candidate of which is proven what was asked for.

    Args:
        profile: its masking curves and suggestions come from the samples that propose.
        search: on the samples that propose and select, in this order.
        certify: the others, which nothing has looked at.
        space: what may be planned, if it is at hand from an earlier decision on the same profile.
        able: whether the layers of the model can run a schedule; what they cannot is not searched.

    Raises:
        InputError: an objective that makes no sense.
        CalibrationError: constraints that no candidate meets, or none that keeps its answers.
    """
    demand, objective, effort = demand or Demand(), objective or Objective(), effort or Effort()
    if space is None:
        costing = Costing(spec, profile_workload(profile, effort.answer_tokens), objective, effort.timer)
        space = Space(profile, costing, demand.goal == "accuracy", able)
    check_constraints(space)
    pictures = len(set(certify.pictures))
    # With the best effort something is executed even where nothing can be proven.
    misses = max(allowed(pictures, demand.limit, demand.confidence), 0 if demand.best_effort else -1)
    looking = Search(space, search, demand.limit, effort.measure, pictures, misses, effort.progress, effort.seed)
    looking.run()
    rungs = _frozen(looking, effort.seed)
    search.save()
    proof = _proof(rungs, certify, demand) if rungs else None
    found = None if proof is None else proof.shipped or (proof.best if demand.best_effort else None)
    chosen = next((one for one in rungs if found is not None and one.name == found.rung.policy), None)
    if chosen is None:
        check_dense(looking, demand.limit)
    notes = [*space.notes, *where_probes_disagree(profile, demand.agreement)]
    refusals = dict.fromkeys((*search.runner.refusals, *certify.runner.refusals))
    notes += [f"candidates that cannot be executed were left out: {cause}" for cause in refusals]
    notes += why_dense(proof, demand, len(certify.runner)) if chosen is None else []
    notes += heads_behind_exit(profile, chosen.schedule) if chosen is not None else []
    return ChosenPlan(
        policy=parse("dense") if chosen is None else chosen.policy,
        schedule=dense(spec.layers) if chosen is None else chosen.schedule,
        demand=demand,
        objective=objective,
        loss=certify.runner.loss,
        proof=proof,
        trials=tuple(_trials(looking, certify.runner.binary)),
        searched=sum(len(line.members) for line in looking.lines),
        executed=search.executed,
        passes=search.passes,
        notes=tuple(notes),
    )


def _proof(rungs: Sequence[Candidate], certify: Certify, demand: Demand) -> Proof:
    return prove(
        [Rung(one.name, one.schedule, one.share) for one in rungs],
        lambda rung: certify.runner.losses(rung.schedule),
        demand.limit,
        demand.confidence,
        binary=certify.runner.binary,
        pictures=certify.pictures,
        kinds=certify.kinds,
        kind_limit=demand.kind_limit,
    )


def _frozen(looking: Search, seed: int) -> list[Candidate]:
    """The ladder, which stays as it is when its rungs run on all search samples; times are measured first, if any."""
    rungs = _settled(looking, seed)
    costing = looking.space.costing
    if not costing.objective.measured:
        return rungs
    hopeful = [one for line in looking.lines for one in line.hopeful(looking.aim)]
    finalists = dict.fromkeys(one.schedule for one in (*rungs, *sorted(hopeful, key=lambda one: one.share)))
    costing.time(list(finalists)[:_TIMED])
    for line in looking.lines:
        line.cost_again(looking.space)
    return _settled(looking, seed)


def _settled(looking: Search, seed: int) -> list[Candidate]:
    """A ladder that stays as it is when its rungs are executed on all search samples, as far as runs are left."""
    everything, lines = looking.levels[-1], looking.lines
    while True:
        usable = [one for line in lines for one in _usable(looking, line)]
        rungs = ladder(lines, looking.certify, looking.misses, usable, seed)
        places = [(line, line.members.index(rung)) for rung in rungs for line in lines if rung in line.members]
        fresh = [
            (line, i)
            for line, i in places
            if not line.given_up[i] and len(line.seen.get(i, ())) < everything
            if looking.affordable(line.members[i].schedule, looking.measure)
        ]
        if not fresh:
            return rungs
        for line, member in fresh:
            if looking.affordable(line.members[member].schedule, looking.measure):
                looking.execute(line, member, everything)


def _usable(looking: Search, line: Line) -> list[Candidate]:
    """Members that may be rungs: that ran, or may still run, or lose no more than a cheaper one that ran on all search
    samples. A rung that nobody looked at would end the test for all behind it, if its family is worse than it looked on
    a few samples."""
    everything = looking.levels[-1] if line.family.loses_more else math.inf
    whole = (i for i, lost in line.seen.items() if not line.given_up[i] and len(lost) >= everything)
    cheapest = min(whole, default=len(line.members))
    return [
        one
        for i, one in enumerate(line.members)
        if not line.given_up[i] and line.eligible[i]
        if i in line.seen or i >= cheapest or looking.affordable(one.schedule, looking.measure)
    ]


def _trials(looking: Search, binary: bool) -> list[Trial]:
    """Everything that ran, with the front marked."""
    found = {}
    for line in looking.lines:
        means = line.curve.mean()
        for member, losses in line.seen.items():
            found[line.members[member].name] = line.members[member], losses, float(means[member])
    best, trials = np.inf, []
    for one, losses, expected in sorted(found.values(), key=lambda row: (row[0].share, row[2])):
        seen = proportion(int(losses.sum()), len(losses)) if binary else mean(losses)
        trials.append(
            Trial(
                policy=one.name,
                share=one.share,
                loss=seen["value"],
                low=seen["low"],
                high=seen["high"],
                n=len(losses),
                expected=expected,
                front=expected < best,
            )
        )
        best = min(best, expected)
    return trials
