"""What a plan is worth: beside dense, controls and other policies at equal FLOPs, on samples the decision never saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from calibrate.deciding.equal_cost import EqualCost, Shapes, comparable
from calibrate.deciding.executed import Evaluation, Executed, Ran
from calibrate.inputs.batches import Batches
from calibrate.inputs.samples import SampleSet
from calibrate.running.controls import blind_answers, floor_answers, floor_losses, floor_name
from calibrate.running.forced import Answer
from calibrate.running.losses import ALONG_ANSWER, LossRunner
from calibrate.running.timing import prefill_ms
from planner.errors import PlannerError, RuntimeStateError, ScheduleError
from planner.evidence import Role
from planner.policies import AnyPolicy, parse
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec

#: What a plan is compared with unless others are named, and what it always is: random pruning, and a smaller picture.
BASELINES, CONTROLS = ("fastv",), ("random", "resize")
BLIND = "no picture"


@dataclass
class _Executed:
    """A row in the making: what was run, its answers and its losses."""

    role: Role
    answers: list[Answer]
    schedule: Schedule | None = None
    losses: NDArray[np.float64] | None = None
    along: Sequence[NDArray[np.float64]] = ()
    prefill_ms: float | None = None
    scores: list[float] = field(default_factory=list)

    def ran(self, name: str) -> Ran:
        """As it is kept."""
        return Ran(
            policy=name,
            role=self.role,
            schedule=self.schedule,
            answers=tuple(answer.text for answer in self.answers),
            ended=tuple(answer.ended for answer in self.answers),
            scores=tuple(map(float, self.scores)),
            losses=None if self.losses is None else tuple(map(float, self.losses)),
            along=tuple(tuple(map(float, one)) for one in self.along),
            prefill_ms=self.prefill_ms,
        )


def evaluate(
    bench: LossRunner,
    spec: ModelSpec,
    plan: tuple[AnyPolicy, Schedule],
    *,
    against: Sequence[str] = BASELINES,
    rounds: int = 15,
    progress: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Execute dense, the plan, controls and baselines on every sample, and time one prefill of the first sample.

    Args:
        bench: the samples; its loss is what stands beside accuracy and agreement.
        against: names of policies that are brought to the plan's cost, and full spellings; controls join them.
        rounds: timing rounds; 0 leaves the times out.
        progress: told what was evaluated, and what could not be: no row is theirs.

    Raises:
        InputError: a policy of `against` is unknown, or a metric of the user's own fails.
    """
    return execute(bench, spec, plan, against=against, rounds=rounds, progress=progress).evaluation(spec)


def execute(
    bench: LossRunner,
    spec: ModelSpec,
    plan: tuple[AnyPolicy, Schedule],
    *,
    against: Sequence[str] = BASELINES,
    rounds: int = 15,
    progress: Callable[[str], None] = lambda line: None,
    part: Sequence[int] | None = None,
) -> Executed:
    """`evaluate` before anything is summed up.

    Args:
        part: positions of the samples that run; None: all. What other policies cost, and so which they are, is that of
            all samples.
    """
    samples, shapes = bench.batches.samples, bench.batches.shapes()
    chosen = baselines([*against, *CONTROLS], spec, plan, Counter(shapes))
    ids = range(len(samples)) if part is None else part
    if part is not None:
        batches = bench.batches
        some = SampleSet(tuple(samples[i] for i in part), samples.source)
        some_batches = Batches(some, batches.encoder, batches.model, batches.batch_size, batches.watch)
        bench = LossRunner(some_batches, bench.loss, bench.answer_tokens, bench.metric, bench.seed)
    executed = _executed(bench, chosen, str(plan[0]), progress)
    _time(bench, executed, rounds)
    for one in executed.values():
        if one.role == "floor" and bench.loss in ALONG_ANSWER:
            one.losses = floor_losses(bench)
        if samples.answered:
            one.scores = [
                bench.metric(answer.text, sample)
                for answer, sample in zip(one.answers, bench.batches.samples, strict=True)
            ]
    return Executed(
        digest=samples.digest,
        ids=tuple(ids),
        shapes=tuple(shapes[i] for i in ids),
        kinds=tuple(samples[i].kind for i in ids),
        loss=bench.loss,
        metric=bench.metric.name,
        runs=tuple(one.ran(name) for name, one in executed.items()),
    )


def baselines(
    names: Sequence[str], spec: ModelSpec, plan: tuple[AnyPolicy, Schedule], shapes: Shapes
) -> dict[str, Schedule]:
    """Schedules by spelling: dense, the plan, and other policies.

    Args:
        names: of policies that are to cost what the plan costs (`calibrate.deciding.equal_cost`), or full spellings,
            which are taken as they are. Nothing costs what a plan that changes nothing costs: beside it names are
            left out. So is a control that no policy here can be.
    """
    policy, schedule = plan
    found = {"dense": dense(spec.layers)}
    if not schedule.empty:
        found[str(policy)] = schedule
    equal, known = EqualCost(spec, schedule, shapes), comparable()
    for name in names:
        if ":" in name:
            found.setdefault(str(parse(name)), equal.schedule(parse(name)))
        elif not schedule.empty and not (name in CONTROLS and name not in known):
            found.setdefault(str(equal.policy(name)), equal.schedule(equal.policy(name)))
    return found


def _executed(
    bench: LossRunner, chosen: dict[str, Schedule], plan: str, progress: Callable[[str], None]
) -> dict[str, _Executed]:
    """Everything that runs: dense, the plan, the controls, other policies."""
    found: dict[str, _Executed] = {}

    def control(name: str, role: Role, run: Callable[[], list[Answer]]) -> None:
        try:
            found[name] = _Executed(role, run())
        except PlannerError as error:
            progress(f"left out {name}: {error.cause}")
            return
        progress(f"evaluated {name}")

    for name, schedule in chosen.items():
        role: Role = "dense" if name == "dense" else "plan" if name == plan else "policy"
        if role == "policy" and BLIND not in found:
            _run_controls(bench, control)
        try:
            one = _Executed(role, bench.answers(schedule), schedule)
            if bench.loss in ALONG_ANSWER:
                one.along = bench.along(schedule)
                one.losses = np.array([bench.of_sample(along) for along in one.along])
        except (RuntimeStateError, ScheduleError) as error:
            if role != "policy":
                raise
            progress(f"left out {name}: {error.cause}")
            continue
        found[name] = one
        progress(f"evaluated {name}")
    if BLIND not in found:
        _run_controls(bench, control)
    return found


def _run_controls(bench: LossRunner, control: Callable[[str, Role, Callable[[], list[Answer]]], None]) -> None:
    batches, longest = bench.batches, bench.answer_tokens
    control(floor_name(batches), "floor", lambda: floor_answers(batches, longest))
    control(BLIND, "blind", lambda: blind_answers(batches, longest))


def _time(bench: LossRunner, executed: dict[str, _Executed], rounds: int) -> None:
    timed = [(one, one.schedule) for one in executed.values() if one.schedule is not None]
    if rounds:
        first = bench.batches.place(bench.batches.encoder([bench.batches.samples[0]]))
        schedules = [schedule for _, schedule in timed]
        times = prefill_ms(bench.batches.model, first, schedules, rounds, bench.batches.watch)
        for (one, _), milliseconds in zip(timed, times, strict=True):
            one.prefill_ms = milliseconds
