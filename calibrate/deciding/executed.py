"""What policies answered, sample by sample, and the tables that are made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from calibrate.deciding.equal_cost import Shapes, mean_flops, workloads
from calibrate.probes.stats import mean, proportion
from planner.cost import cost
from planner.evidence import Kind, LossName, Measured, Place, Role, Row
from planner.schedule import Schedule
from planner.spec import ModelSpec

#: Samples that a plan's page shows.
SHOWN = 6


@dataclass(frozen=True)
class Evaluation:
    """Executed policies on an evaluation set.

    Attributes:
        rows: dense, the plan, the floor, blind, the baselines.
        kinds: the plan by kind of question, where samples have kinds.
        by_kind: accuracy by kind of question, per policy, where samples have kinds and answers.
        answers: every policy's answers, in the samples' order.
        worst: samples for a page, those that lose most first: position, and whether the plan's answer is dense's.
        metric: of accuracy; `loss`: what stands beside it.
    """

    rows: tuple[Row, ...]
    kinds: tuple[Kind, ...]
    by_kind: dict[str, dict[str, Measured]]
    answers: dict[str, list[str]]
    digest: str
    n: int
    metric: str
    loss: LossName
    worst: tuple[tuple[int, bool], ...] = ()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Ran(_Frozen):
    """A row in the making: what was run, and each sample's answer.

    Attributes:
        policy: its spelling; of a control what was done.
        schedule: None of controls.
        ended: whether an answer came to an end before the token limit.
        scores: by the metric; empty where samples have no answers.
        losses: None where answers and scores tell them.
        along: of losses that are measured token by token: those of each sample's dense answer.
        prefill_ms: of the first sample.
    """

    policy: str
    role: Role
    schedule: Schedule | None
    answers: tuple[str, ...]
    ended: tuple[bool, ...]
    scores: tuple[float, ...] = ()
    losses: tuple[float, ...] | None = None
    along: tuple[tuple[float, ...], ...] = ()
    prefill_ms: float | None = None

    def same(self, other: Ran) -> list[bool]:
        """Which whole answers, their ends included, are the other's."""
        return [a == b for a, b in zip(self._whole, other._whole, strict=True)]

    @property
    def _whole(self) -> list[tuple[str, bool]]:
        return list(zip(self.answers, self.ended, strict=True))


class Executed(_Frozen):
    """Everything that ran on some samples of a set.

    Attributes:
        digest: of the whole set.
        ids: of the samples, their positions in it.
        shapes: tokens of each before the image, of the image and after it.
        kinds: each one's kind of question.
        loss, metric: what samples lose, and when an answer is right.
        runs: dense first.
    """

    digest: str
    ids: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]
    kinds: tuple[str, ...]
    loss: LossName
    metric: str
    runs: tuple[Ran, ...]

    def evaluation(self, spec: ModelSpec) -> Evaluation:
        """The tables."""
        whole, shapes = self.runs[0], Counter(self.shapes)
        planned = next((run for run in self.runs if run.role == "plan"), None)
        by_kind = {run.policy: self._accuracy_by_kind(run) for run in self.runs} if whole.scores else {}
        return Evaluation(
            rows=tuple(self._row(run, spec, shapes) for run in self.runs),
            kinds=() if planned is None else tuple(self._kinds(planned)),
            by_kind=by_kind,
            answers={run.policy: list(run.answers) for run in self.runs},
            digest=self.digest,
            n=len(self.ids),
            metric=self.metric,
            loss=self.loss,
            worst=() if planned is None else self._worst(planned),
        )

    def _worst(self, run: Ran) -> tuple[tuple[int, bool], ...]:
        """Those that lose most first, of equal ones those whose answer got worse; then those that lose nothing, one of
        each kind of question before a second."""
        whole = self.runs[0]
        same = run.same(whole)
        drops = [a - b for a, b in zip(whole.scores, run.scores, strict=True)] or [0.0] * len(same)
        losses = run.losses or (drops if self.loss == "score" else [0.0] * len(same))
        turns, met = [], Counter[str]()
        for kind, kept, lost in zip(self.kinds, same, losses, strict=True):
            unharmed = kept and lost <= 0
            turns.append(met[kind] if unharmed else 0)
            met[kind] += unharmed
        order = sorted(range(len(same)), key=lambda i: (-losses[i], same[i], -drops[i], turns[i], i))
        return tuple((i, same[i]) for i in order[:SHOWN])

    def _row(self, run: Ran, spec: ModelSpec, shapes: Shapes) -> Row:
        whole = self.runs[0]
        figures, full = (
            _figures(spec, of.schedule, shapes) if of.schedule is not None else None for of in (run, whole)
        )
        losses: Any = run.losses
        if self.loss == "score" and run.scores:
            losses = np.array(whole.scores) - np.array(run.scores)
        return Row(
            policy=run.policy,
            role=run.role,
            accuracy=_measured(run.scores) if run.scores else None,
            agreement=_measured(run.same(whole)),
            loss=None if losses is None else _measured(losses),
            along=_places(run.along),
            runaway=_measured([not ended for ended in run.ended]),
            prefill_ms=run.prefill_ms,
            decoder_flops=None if figures is None else figures[0],
            decoder_flops_ratio=None if figures is None or full is None else figures[0] / full[0],
            visual_attention_ratio=None if figures is None or full is None else figures[1] / full[1],
            kv_cache_bytes=None if figures is None else figures[2],
            kv_cache_ratio=None if figures is None or full is None else figures[2] / full[2],
        )

    def _kinds(self, planned: Ran) -> list[Kind]:
        whole, same = self.runs[0], planned.same(self.runs[0])
        return [
            Kind(
                kind=kind,
                accuracy=_measured([planned.scores[i] for i in chosen]) if planned.scores else None,
                dense_accuracy=_measured([whole.scores[i] for i in chosen]) if whole.scores else None,
                agreement=_measured([same[i] for i in chosen]),
                loss=None if planned.losses is None else _measured([planned.losses[i] for i in chosen]),
            )
            for kind, chosen in self._by_kind().items()
        ]

    def _accuracy_by_kind(self, run: Ran) -> dict[str, Measured]:
        return {kind: _measured([run.scores[i] for i in chosen]) for kind, chosen in self._by_kind().items()}

    def _by_kind(self) -> dict[str, list[int]]:
        found = sorted({kind for kind in self.kinds if kind})
        return {kind: [i for i, one in enumerate(self.kinds) if one == kind] for kind in found}


def united(parts: Sequence[Executed]) -> Executed:
    """Parts of one sample set as if they had run together, in the set's order.

    Args:
        parts: with the same runs, and no sample twice.
    """
    ids = [i for part in parts for i in part.ids]
    order = sorted(range(len(ids)), key=ids.__getitem__)

    def joined(values: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
        flat = [value for part in values for value in part]
        return tuple(flat[i] for i in order) if flat else ()

    runs = []
    for same in zip(*(part.runs for part in parts), strict=True):
        update: dict[str, Any] = {
            name: joined([getattr(run, name) for run in same]) for name in ("answers", "ended", "scores", "along")
        }
        losses = [run.losses for run in same if run.losses is not None]
        times = [run.prefill_ms for run in same if run.prefill_ms is not None]
        update["losses"] = joined(losses) if losses else None
        update["prefill_ms"] = times[0] if times else None
        runs.append(same[0].model_copy(update=update))
    whole = {name: joined([getattr(part, name) for part in parts]) for name in ("ids", "shapes", "kinds")}
    return parts[0].model_copy(update={**whole, "runs": tuple(runs)})


def _figures(spec: ModelSpec, schedule: Schedule, shapes: Shapes) -> tuple[float, float, float]:
    """Decoder FLOPs, visual attention FLOPs and KV-cache bytes, means over samples."""
    visual_attention = kv_cache_bytes = 0.0
    for request, count in workloads(shapes):
        found = cost(spec, request, schedule)
        visual_attention += float(found.visual_attention) * count
        kv_cache_bytes += found.kv_cache_bytes * count
    n = shapes.total()
    return mean_flops(spec, schedule, shapes), visual_attention / n, kv_cache_bytes / n


def _places(along: Sequence[Sequence[float]]) -> tuple[Place, ...]:
    """Mean losses by place in the answer: its first token, the second, then stretches each twice as long as before.

    A sample's tokens within a stretch are not independent, so that its mean counts as one observation.
    """
    longest, first, found = max(map(len, along), default=0), 0, []
    while first < longest:
        last = max(2 * first, first + 1)
        reached = [np.mean(one[first:last]) for one in along if len(one) > first]
        found.append(Place(first=first + 1, last=min(last, longest), loss=_measured(reached)))
        first = last
    return tuple(found)


def _measured(values: Any) -> Measured:
    """Mean and 95 % interval: Wilson's for shares, of resampled means for anything else."""
    found = np.asarray(values, np.float64)
    if np.isin(found, (0, 1)).all():
        return Measured.model_validate(proportion(int(found.sum()), len(found)))
    return Measured.model_validate(mean(found))
