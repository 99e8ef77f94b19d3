"""What a plan is worth: beside dense, controls and other policies at equal FLOPs, on samples the decision never saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.deciding.equal_cost import EqualCost, Shapes, comparable, mean_flops, workloads
from calibrate.inputs.samples import Sample, SampleSet
from calibrate.probes.stats import mean, proportion
from calibrate.running.controls import blind_answers, floor_answers, floor_losses, floor_name
from calibrate.running.forced import Answer
from calibrate.running.losses import LossRunner
from calibrate.running.timing import prefill_ms
from planner.cost import cost
from planner.errors import PlannerError, RuntimeStateError
from planner.evidence import Kind, Measured, Role, Row
from planner.policies import AnyPolicy, parse
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec

#: What a plan is compared with unless others are named, and what it always is: random pruning, and a smaller picture.
BASELINES, CONTROLS = ("fastv",), ("random", "resize")
BLIND = "no picture"
#: Losses that answers alone do not tell.
_ALONG_ANSWER = ("tokens", "nll")


@dataclass(frozen=True)
class Evaluation:
    """Executed policies on an evaluation set.

    Attributes:
        rows: dense, the plan, the floor, blind, the baselines.
        kinds: the plan by kind of question, where samples have kinds.
        by_kind: accuracy by kind of question, per policy, where samples have kinds and answers.
        samples: what was asked.
        answers: every policy's answers, in the samples' order.
        metric: of accuracy.
    """

    rows: tuple[Row, ...]
    kinds: tuple[Kind, ...]
    by_kind: dict[str, dict[str, Measured]]
    samples: SampleSet
    answers: dict[str, list[str]]
    digest: str
    n: int
    metric: str


@dataclass
class _Executed:
    """A row in the making: what was run, its answers and its losses."""

    role: Role
    answers: list[Answer]
    schedule: Schedule | None = None
    losses: NDArray[np.float64] | None = None
    prefill_ms: float | None = None
    scores: list[float] = field(default_factory=list)


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
    samples = bench.batches.samples
    shapes: Shapes = Counter(bench.batches.shapes())
    chosen = baselines([*against, *CONTROLS], spec, plan, shapes)
    executed = _executed(bench, chosen, str(plan[0]), progress)
    _time(bench, executed, rounds)
    whole = executed["dense"]
    for one in executed.values():
        if one.role == "floor" and bench.loss in _ALONG_ANSWER:
            one.losses = floor_losses(bench)
        if samples.answered:
            one.scores = [
                bench.metric(answer.text, sample) for answer, sample in zip(one.answers, samples, strict=True)
            ]
    rows = [_row(name, one, whole, bench, spec, shapes) for name, one in executed.items()]
    planned = next((one for one in executed.values() if one.role == "plan"), None)
    return Evaluation(
        rows=tuple(rows),
        kinds=() if planned is None else tuple(_kinds(planned, whole, samples)),
        by_kind={name: _accuracy_by_kind(one, samples) for name, one in executed.items()} if samples.answered else {},
        samples=samples,
        answers={name: [answer.text for answer in one.answers] for name, one in executed.items()},
        digest=samples.digest,
        n=len(samples),
        metric=bench.metric.name,
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
            found[name] = _Executed(role, bench.answers(schedule), schedule)
        except RuntimeStateError as error:
            if role != "policy":
                raise
            progress(f"left out {name}: {error.cause}")
            continue
        if bench.loss in _ALONG_ANSWER:
            found[name].losses = bench.losses(schedule)
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


def _row(name: str, one: _Executed, whole: _Executed, bench: LossRunner, spec: ModelSpec, shapes: Shapes) -> Row:
    figures, full = (_figures(spec, of.schedule, shapes) if of.schedule is not None else None for of in (one, whole))
    losses = one.losses
    if bench.loss == "score" and one.scores:
        losses = np.array(whole.scores) - np.array(one.scores)
    return Row(
        policy=name,
        role=one.role,
        accuracy=_measured(one.scores) if one.scores else None,
        agreement=_measured(_same(one, whole)),
        loss=None if losses is None else _measured(losses),
        runaway=_measured([not answer.ended for answer in one.answers]),
        prefill_ms=one.prefill_ms,
        decoder_flops=None if figures is None else figures[0],
        decoder_flops_ratio=None if figures is None or full is None else figures[0] / full[0],
        visual_attention_ratio=None if figures is None or full is None else figures[1] / full[1],
        kv_cache_bytes=None if figures is None else figures[2],
        kv_cache_ratio=None if figures is None or full is None else figures[2] / full[2],
    )


def _figures(spec: ModelSpec, schedule: Schedule, shapes: Shapes) -> tuple[float, float, float]:
    """Decoder FLOPs, visual attention FLOPs and KV-cache bytes, means over samples."""
    visual_attention = kv_cache_bytes = 0.0
    for request, count in workloads(shapes):
        found = cost(spec, request, schedule)
        visual_attention += float(found.visual_attention) * count
        kv_cache_bytes += found.kv_cache_bytes * count
    n = shapes.total()
    return mean_flops(spec, schedule, shapes), visual_attention / n, kv_cache_bytes / n


def _same(one: _Executed, whole: _Executed) -> list[bool]:
    """Whole answers, and whether they end, as dense."""
    return [(a.text, a.ended) == (b.text, b.ended) for a, b in zip(one.answers, whole.answers, strict=True)]


def _kinds(planned: _Executed, whole: _Executed, samples: Sequence[Sample]) -> list[Kind]:
    same = _same(planned, whole)
    found = []
    for kind, chosen in _by_kind(samples).items():
        found.append(
            Kind(
                kind=kind,
                accuracy=_measured([planned.scores[i] for i in chosen]) if planned.scores else None,
                dense_accuracy=_measured([whole.scores[i] for i in chosen]) if whole.scores else None,
                agreement=_measured([same[i] for i in chosen]),
                loss=None if planned.losses is None else _measured(planned.losses[chosen]),
            )
        )
    return found


def _accuracy_by_kind(one: _Executed, samples: Sequence[Sample]) -> dict[str, Measured]:
    return {kind: _measured([one.scores[i] for i in chosen]) for kind, chosen in _by_kind(samples).items()}


def _by_kind(samples: Sequence[Sample]) -> dict[str, list[int]]:
    kinds = sorted({sample.kind for sample in samples if sample.kind})
    return {kind: [i for i, sample in enumerate(samples) if sample.kind == kind] for kind in kinds}


def _measured(values: Any) -> Measured:
    """Mean and 95 % interval: Wilson's for shares, of resampled means for anything else."""
    found = np.asarray(values, np.float64)
    if np.isin(found, (0, 1)).all():
        return Measured.model_validate(proportion(int(found.sum()), len(found)))
    return Measured.model_validate(mean(found))
