"""What a plan is worth: beside dense, and FastV and random at equal FLOPs, on samples the decision never saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.answers import RULE, matches
from calibrate.search import decoder_flops
from calibrate.stats import proportion
from calibrate.timing import prefill_ms
from calibrate.trial import Bench
from planner.cost import cost
from planner.plan import Measured, Row
from planner.policies import Dense, FastV, Policy, Random
from planner.schedule import Schedule
from planner.spec import ModelSpec
from planner.workload import Workload

#: FastV's and random's layer after which tokens go; 1 where 2 dense layers cost more than the whole plan.
BASELINE_LAYERS = (2, 1)
_BISECTIONS = 30

Shapes = Counter[tuple[int, int, int]]


@dataclass(frozen=True)
class Evaluation:
    """Executed policies on an evaluation set.

    Attributes:
        rows: dense, the plan, the baselines.
        by_kind: accuracy by question type, per policy, where samples have types and answers.
        answers: every policy's answers, in the samples' order.
    """

    rows: tuple[Row, ...]
    by_kind: dict[str, dict[str, Measured]]
    answers: dict[str, list[str]]
    digest: str
    n: int
    rule: str = RULE


@dataclass(frozen=True)
class _Figures:
    """Means over samples."""

    decoder_flops: float
    visual_attention: float
    kv_cache_bytes: float


def evaluate(
    bench: Bench,
    spec: ModelSpec,
    plan: tuple[Policy, Schedule],
    *,
    answer_tokens: int = 16,
    rounds: int = 15,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Execute dense, the plan and the baselines on every sample, and time one prefill of the first sample.

    Args:
        answer_tokens: longest answer.
        rounds: timing rounds; 0 leaves the times out.
        seed: of random selections.
    """
    samples = bench.batches.samples
    shapes: Shapes = Counter(bench.batches.shapes())
    chosen = policies(spec, plan, shapes)
    figures = {name: _figures(spec, schedule, shapes) for name, schedule in chosen.items()}
    answers: dict[str, list[str]] = {}
    for name, schedule in chosen.items():
        executed = None if schedule.empty else schedule
        answers[name] = bench.answers(answer_tokens, executed, seed)
        progress(f"evaluated {name}")
    times: Sequence[float | None] = [None] * len(chosen)
    if rounds:
        first = bench.batches.encoder([samples[0]])
        times = prefill_ms(bench.batches.model, bench.batches.place(first), list(chosen.values()), rounds)
    dense = figures["dense"]
    rows = [
        Row(
            policy=name,
            accuracy=_accuracy(answers[name], samples) if samples.answered else None,
            agreement=_measured([a == b for a, b in zip(answers[name], answers["dense"], strict=True)]),
            decoder_flops=figures[name].decoder_flops,
            decoder_flops_ratio=figures[name].decoder_flops / dense.decoder_flops,
            visual_attention_ratio=figures[name].visual_attention / dense.visual_attention,
            kv_cache_bytes=figures[name].kv_cache_bytes,
            kv_cache_ratio=figures[name].kv_cache_bytes / dense.kv_cache_bytes,
            prefill_ms=time,
        )
        for name, time in zip(chosen, times, strict=True)
    ]
    by_kind = {name: _by_kind(found, samples) for name, found in answers.items()} if samples.answered else {}
    return Evaluation(tuple(rows), by_kind, answers, samples.digest, len(samples))


def policies(spec: ModelSpec, plan: tuple[Policy, Schedule], shapes: Shapes) -> dict[str, Schedule]:
    """Schedules by spelling: dense, the plan, and FastV and random that cost just as much or a token more.

    A plan that changes nothing has no equal: then dense stands alone.
    """
    found = {"dense": Dense().schedule(spec)}
    name, schedule = str(plan[0]), plan[1]
    if schedule.empty:
        return found
    found[name] = schedule
    budget = _mean_flops(spec, schedule, shapes)
    for kind in (FastV, Random):
        baseline = equal_cost(kind, spec, budget, shapes)
        found.setdefault(str(baseline), baseline.schedule(spec))
    return found


def equal_cost(
    kind: type[FastV] | type[Random], spec: ModelSpec, budget_flops: float, shapes: Shapes
) -> FastV | Random:
    """The policy that drops as much as it can while costing no less than the budget (decoder FLOPs, mean over samples).

    So a baseline is never given less compute than the plan, unless even dropping everything after layer 1 costs more.
    """
    for k in BASELINE_LAYERS:
        if _mean_flops(spec, kind(k=k, ratio=1.0).schedule(spec), shapes) <= budget_flops:
            break
    low, high = 0.0, 1.0  # costs more, costs less
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        costs_more = _mean_flops(spec, kind(k=k, ratio=middle).schedule(spec), shapes) >= budget_flops
        low, high = (middle, high) if costs_more else (low, middle)
    # Rounded down, so that the cost is rounded up: at most one token in ten thousand.
    return kind(k=k, ratio=math.floor(low * 1e4) / 1e4)


def workload(shape: tuple[int, int, int]) -> Workload:
    """One sample's tokens before the image, of the image and after it, as a request with a one-token answer."""
    system, visual, text = shape
    return Workload(visual_tokens=visual, text_tokens=text, system_tokens=system, output_tokens=1)


def _mean_flops(spec: ModelSpec, schedule: Schedule, shapes: Shapes) -> float:
    total = sum(decoder_flops(spec, workload(shape), schedule) * count for shape, count in shapes.items())
    return total / shapes.total()


def _figures(spec: ModelSpec, schedule: Schedule, shapes: Shapes) -> _Figures:
    visual_attention = kv_cache_bytes = 0.0
    for shape, count in shapes.items():
        found = cost(spec, workload(shape), schedule)
        visual_attention += float(found.visual_attention) * count
        kv_cache_bytes += found.kv_cache_bytes * count
    n = shapes.total()
    return _Figures(_mean_flops(spec, schedule, shapes), visual_attention / n, kv_cache_bytes / n)


def _accuracy(answers: Sequence[str], samples: Sequence[Any]) -> Measured:
    return _measured([matches(answer, sample.answers) for answer, sample in zip(answers, samples, strict=True)])


def _by_kind(answers: Sequence[str], samples: Sequence[Any]) -> dict[str, Measured]:
    kinds = sorted({sample.kind for sample in samples if sample.kind})
    pairs = list(zip(answers, samples, strict=True))
    return {kind: _accuracy(*zip(*((a, s) for a, s in pairs if s.kind == kind), strict=True)) for kind in kinds}


def _measured(hits: Sequence[bool]) -> Measured:
    return Measured.model_validate(proportion(sum(hits), len(hits)))
