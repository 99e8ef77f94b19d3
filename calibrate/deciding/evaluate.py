"""What a plan is worth: beside dense and other policies at equal FLOPs, random among them, on samples the decision
never saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.deciding.equal_cost import EqualCost, Shapes, mean_flops, workloads
from calibrate.inputs.answers import RULE, matches
from calibrate.probes.stats import proportion
from calibrate.running.timing import prefill_ms
from calibrate.running.trial import TrialRunner
from planner.cost import cost
from planner.errors import RuntimeStateError
from planner.plan import Measured, Row
from planner.policies import AnyPolicy, parse
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec

#: What a plan is always compared with.
BASELINES = ("fastv", "random")


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
    bench: TrialRunner,
    spec: ModelSpec,
    plan: tuple[AnyPolicy, Schedule],
    *,
    against: Sequence[str] = BASELINES,
    answer_tokens: int = 16,
    rounds: int = 15,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Execute dense, the plan and its baselines on every sample, and time one prefill of the first sample.

    Args:
        against: names of policies that are brought to the plan's cost, and full spellings.
        answer_tokens: longest answer.
        rounds: timing rounds; 0 leaves the times out.
        seed: of random selections.
        progress: told what was evaluated, and what other policies the model refuses on these prompts: no row is theirs.
    """
    samples = bench.batches.samples
    shapes: Shapes = Counter(bench.batches.shapes())
    chosen = baselines(against, spec, plan, shapes)
    figures = {name: _figures(spec, schedule, shapes) for name, schedule in chosen.items()}
    answers: dict[str, list[str]] = {}
    for name, schedule in list(chosen.items()):
        executed = None if schedule.empty else schedule
        try:
            answers[name] = bench.answers(answer_tokens, executed, seed)
        except RuntimeStateError as error:
            if name in ("dense", str(plan[0])):
                raise
            del chosen[name]
            progress(f"left out {name}: {error.cause}")
            continue
        progress(f"evaluated {name}")
    times: Sequence[float | None] = [None] * len(chosen)
    if rounds:
        first = bench.batches.encoder([samples[0]])
        times = prefill_ms(bench.batches.model, bench.batches.place(first), list(chosen.values()), rounds)
    whole = figures["dense"]
    rows = [
        Row(
            policy=name,
            accuracy=_accuracy(answers[name], samples) if samples.answered else None,
            agreement=_measured([a == b for a, b in zip(answers[name], answers["dense"], strict=True)]),
            decoder_flops=figures[name].decoder_flops,
            decoder_flops_ratio=figures[name].decoder_flops / whole.decoder_flops,
            visual_attention_ratio=figures[name].visual_attention / whole.visual_attention,
            kv_cache_bytes=figures[name].kv_cache_bytes,
            kv_cache_ratio=figures[name].kv_cache_bytes / whole.kv_cache_bytes,
            prefill_ms=time,
        )
        for name, time in zip(chosen, times, strict=True)
    ]
    by_kind = {name: _by_kind(found, samples) for name, found in answers.items()} if samples.answered else {}
    return Evaluation(tuple(rows), by_kind, answers, samples.digest, len(samples))


def baselines(
    names: Sequence[str], spec: ModelSpec, plan: tuple[AnyPolicy, Schedule], shapes: Shapes
) -> dict[str, Schedule]:
    """Schedules by spelling: dense, the plan, and other policies.

    Args:
        names: of policies that are to cost what the plan costs (`calibrate.deciding.equal_cost`), or full spellings,
            which are taken as they are. Nothing costs what a plan that changes nothing costs: beside it names are
            left out.
    """
    policy, schedule = plan
    found = {"dense": dense(spec.layers)}
    if not schedule.empty:
        found[str(policy)] = schedule
    equal = EqualCost(spec, schedule, shapes)
    for name in names:
        if ":" in name:
            found.setdefault(str(parse(name)), equal.schedule(parse(name)))
        elif not schedule.empty:
            found.setdefault(str(equal.policy(name)), equal.schedule(equal.policy(name)))
    return found


def _figures(spec: ModelSpec, schedule: Schedule, shapes: Shapes) -> _Figures:
    visual_attention = kv_cache_bytes = 0.0
    for request, count in workloads(shapes):
        found = cost(spec, request, schedule)
        visual_attention += float(found.visual_attention) * count
        kv_cache_bytes += found.kv_cache_bytes * count
    n = shapes.total()
    return _Figures(mean_flops(spec, schedule, shapes), visual_attention / n, kv_cache_bytes / n)


def _accuracy(answers: Sequence[str], samples: Sequence[Any]) -> Measured:
    return _measured([matches(answer, sample.answers) for answer, sample in zip(answers, samples, strict=True)])


def _by_kind(answers: Sequence[str], samples: Sequence[Any]) -> dict[str, Measured]:
    kinds = sorted({sample.kind for sample in samples if sample.kind})
    pairs = list(zip(answers, samples, strict=True))
    return {kind: _accuracy(*zip(*((a, s) for a, s in pairs if s.kind == kind), strict=True)) for kind in kinds}


def _measured(hits: Sequence[bool]) -> Measured:
    return Measured.model_validate(proportion(sum(hits), len(hits)))
