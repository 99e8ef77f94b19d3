"""From a profile to a plan: search, freeze a ladder, prove it on samples that had no part in either.

The samples come in three parts (`calibrate.deciding.split`). Policies propose from the first, which masking curves see
too; the search (`calibrate.deciding.halving`) runs on the first and second; the third is opened once, for the ladder
that is frozen by then (`calibrate.deciding.ladder`, `calibrate.deciding.proof`). The cheapest proven rung is the plan.
Where none is proven it is dense, unless the best effort was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibrate.deciding.halving import Line, Search
from calibrate.deciding.ladder import ladder
from calibrate.deciding.notes import few_samples, where_probes_disagree
from calibrate.deciding.objective import Costing, Objective, Timer, profile_workload, unmeetable
from calibrate.deciding.power import allowed, check_promise
from calibrate.deciding.proof import Proof, Rung, prove
from calibrate.deciding.space import Candidate, Space
from calibrate.deciding.trials import Losses, Trials
from calibrate.probes.stats import mean, proportion
from planner.errors import CalibrationError
from planner.policies import AnyPolicy, parse
from planner.profile import Profile
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec

#: Schedules that a search may execute.
MEASURE = 160
#: Finalists that are timed where times are measured.
_TIMED = 12


@dataclass(frozen=True)
class Promise:
    """What must hold of a plan.

    Attributes:
        limit: largest expected loss, 0.02 for an agreement of 0.98.
        confidence: with which it is proven.
        binary: losses are 0 or 1.
        accuracy: the loss is of a task's metric, so that what changes answers on purpose is searched too.
        kinds, kind_limit: of question, one for each certify sample, and the largest expected loss of each kind.
        pictures: one number for each certify sample, equal where samples show the same picture.
        best_effort: where nothing is proven, take the rung of which most is.
    """

    limit: float = 0.02
    confidence: float = 0.8
    binary: bool = True
    accuracy: bool = False
    kinds: tuple[str, ...] = ()
    kind_limit: float | None = None
    pictures: tuple[int, ...] | None = None
    best_effort: bool = False

    def __post_init__(self) -> None:
        check_promise(self.limit, self.confidence)


@dataclass(frozen=True)
class Trial:
    """A candidate that was executed on search samples.

    Attributes:
        share: of the minimised quantity, to dense.
        flops_share, kv_share: of the decoder FLOPs and of the KV cache, to dense.
        loss: mean over the search samples that it ran on, with its 95 % interval.
        expected: the loss that is expected of it, by what its whole family lost.
        front: no executed candidate costs less and is expected to lose less.
    """

    policy: str
    share: float
    flops_share: float
    kv_share: float
    loss: dict[str, Any]
    expected: float
    front: bool


@dataclass(frozen=True)
class ChosenPlan:
    """The chosen policy, its proof, and what a reader should know.

    Attributes:
        proof: None where there was nothing to be proven.
        proven: the promise holds.
        trials: candidates that were executed, the cheapest first.
        searched: candidates that were costed; executed: schedules that ran; passes: on how many samples, in all.
    """

    policy: AnyPolicy
    schedule: Schedule
    promise: Promise
    objective: Objective
    proof: Proof | None
    proven: bool
    trials: tuple[Trial, ...]
    searched: int
    executed: int
    passes: int
    notes: tuple[str, ...] = ()


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

    measure: int = MEASURE
    answer_tokens: int = 16
    seed: int = 0
    timer: Timer | None = None
    progress: Callable[[str], None] = field(default=lambda line: None)


def decide(
    profile: Profile,
    spec: ModelSpec,
    search: Losses | Trials,
    certify: Losses,
    promise: Promise | None = None,
    objective: Objective | None = None,
    effort: Effort | None = None,
    space: Space | None = None,
) -> ChosenPlan:
    """The cheapest candidate of which the promise is proven.

    Args:
        profile: its masking curves and suggestions come from the samples of the first part.
        search: the samples of the first and second part, in this order.
        certify: those of the third.
        space: what may be planned, if it is at hand from an earlier decision on the same profile.

    Raises:
        InputError: promise or objective make no sense.
        CalibrationError: constraints that no candidate meets, or none that keeps its answers.
    """
    promise, objective, effort = promise or Promise(), objective or Objective(), effort or Effort()
    if space is None:
        costing = Costing(spec, profile_workload(profile, effort.answer_tokens), objective, effort.timer)
        space = Space(profile, costing, promise.accuracy)
    notes = [*space.notes, *where_probes_disagree(profile, 1 - promise.limit)]
    _check_constraints(space)
    trials = search if isinstance(search, Trials) else Trials(search)
    looking = Search(space, trials, promise.limit, effort.measure, effort.progress)
    lines = looking.run()
    rungs = _frozen(looking, looking.lines, promise, len(certify), effort.seed)
    trials.save()
    proof = None
    if rungs:
        proof = prove(
            [Rung(one.name, one.schedule, one.share) for one in rungs],
            lambda rung: certify.losses(rung.schedule),
            promise.limit,
            promise.confidence,
            binary=promise.binary,
            pictures=promise.pictures,
            kinds=promise.kinds,
            kind_limit=promise.kind_limit,
        )
    found = None if proof is None else proof.shipped or (proof.best if promise.best_effort else None)
    refusals = dict.fromkeys((*trials.runner.refusals, *certify.refusals))
    notes += [f"candidates that cannot be executed were left out: {cause}" for cause in refusals]
    notes += few_samples(len(certify), promise.limit, promise.confidence) if found is None else []
    chosen = next((one for one in rungs if found is not None and one.name == found.rung.policy), None)
    if chosen is None:
        _check_dense(looking, promise)
        notes.append(_why_dense(proof, promise, len(certify)))
    return ChosenPlan(
        policy=parse("dense") if chosen is None else chosen.policy,
        schedule=dense(spec.layers) if chosen is None else chosen.schedule,
        promise=promise,
        objective=objective,
        proof=proof,
        proven=proof is not None and proof.shipped is not None,
        trials=tuple(_trials(looking, promise.binary)),
        searched=len(space) + sum(len(line.members) for line in looking.lines if line.family.origin is not None),
        executed=trials.executed,
        passes=trials.passes,
        notes=tuple(notes),
    )


def _frozen(looking: Search, lines: Sequence[Line], promise: Promise, certify: int, seed: int) -> list[Candidate]:
    """The ladder: each of its rungs has run on all search samples, and still belongs there."""
    everything, misses = looking.levels[-1], allowed(certify, promise.limit, promise.confidence)
    _time(looking, lines)
    while True:
        usable = [one for line in lines for i, one in enumerate(line.members) if i >= line.lost and line.eligible[i]]
        rungs = ladder(lines, certify, misses, usable, seed)
        places = [(line, line.members.index(rung)) for rung in rungs for line in lines if rung in line.members]
        fresh = [(line, i) for line, i in places if i >= line.lost and len(line.seen.get(i, ())) < everything]
        if not fresh:
            return rungs
        for line, member in fresh:
            looking.execute(line, member, everything)


def _time(looking: Search, lines: Sequence[Line]) -> None:
    """Where times are measured: the finalists', and nothing without a time may be a rung."""
    costing = looking.space.costing
    if costing.objective.measured:
        hopeful = [one for line in lines for one in line.hopeful(looking.aim)]
        costing.time([one.schedule for one in sorted(hopeful, key=lambda one: one.share)[:_TIMED]])
        for line in lines:
            line.cost_again(looking.space)


def _check_constraints(space: Space) -> None:
    """Refuse constraints that no candidate meets, before anything runs.

    Raises:
        CalibrationError: naming the nearest candidate, and by how much it misses which constraint.
    """
    everyone = [one for family in space.families for one in family.members]
    if not everyone:
        raise CalibrationError("no policy proposes anything for this model", "See `plan ls policies`")
    missed = [(one.name, space.costing.breaches(one.figures)) for one in everyone]
    # What no policy meets by itself, two together may: those are met in the search.
    if all(breaches for _, breaches in missed) and not _together_may(space):
        raise unmeetable(missed, f"none of {len(missed)} candidates", "Relax the constraint")


def _together_may(space: Space) -> bool:
    """Whether the cheapest candidates of two kinds meet the constraints together."""
    for family in space.families:
        for other in space.families:
            found = space.together(family, other.members[0])
            if found is not None and any(not space.costing.breaches(one.figures) for one in found.members[:1]):
                return True
    return False


def _check_dense(looking: Search, promise: Promise) -> None:
    """Refuse a dense plan that does not meet the constraints itself.

    Raises:
        CalibrationError: saying which constraint binds and by how much.
    """
    costing = looking.space.costing
    if not costing.breaches(costing.dense):
        return
    hopeful = [one for line in looking.lines for one in line.hopeful(looking.aim)]
    missed = [(one.name, costing.breaches(one.figures)) for one in hopeful if costing.breaches(one.figures)]
    what = f"no candidate that may keep a loss of {promise.limit:g}"
    if not missed or len(missed) < len(hopeful):
        raise CalibrationError(
            f"what meets the constraints is not proven to keep a loss of {promise.limit:g}",
            "Give more samples, relax a constraint or the limit, or take --best-effort",
        )
    raise unmeetable(missed, what, "Relax the constraint or the limit, or take --best-effort")


def _why_dense(proof: Proof | None, promise: Promise, certify: int) -> str:
    kept = f"a loss of at most {promise.limit:g} with confidence {promise.confidence:g}"
    if proof is None or not proof.tested:
        return f"no candidate promised {kept}: the plan is dense"
    first = proof.tested[0]
    return (
        f"{first.rung.policy}, the safest rung, lost {first.misses} of {certify} answers, and {kept} is not proven: "
        "the plan is dense"
    )


def _trials(looking: Search, binary: bool) -> list[Trial]:
    """Everything that ran, with the front marked."""
    whole, found = looking.space.costing.dense, {}
    for line in looking.lines:
        means = line.curve.mean()
        for member, losses in line.seen.items():
            found[line.members[member].name] = line.members[member], losses, float(means[member])
    best, trials = np.inf, []
    for one, losses, expected in sorted(found.values(), key=lambda row: (row[0].share, row[2])):
        trials.append(
            Trial(
                policy=one.name,
                share=one.share,
                flops_share=one.figures.flops / whole.flops,
                kv_share=one.figures.kv_mb / whole.kv_mb,
                loss=proportion(int(losses.sum()), len(losses)) if binary else mean(losses),
                expected=expected,
                front=expected < best,
            )
        )
        best = min(best, expected)
    return trials
