"""The nearest plan that an engine can carry, of those that were measured when a plan was decided on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.engines.carry import carried, visual_tokens
from planner.engines.facts import Engine
from planner.errors import PlannerError
from planner.plan import Plan
from planner.policies import parse
from planner.spec import ModelSpec


@dataclass(frozen=True)
class Nearest:
    """A policy that was measured.

    Attributes:
        share: what it costs of what the search minimised, to dense.
        loss: mean over the samples that it ran on.
        proven: the plan's promise was proven of it.
        evidence: a sentence without a full stop.
    """

    policy: str
    share: float
    loss: float
    proven: bool
    evidence: str


def nearest(plan: Plan, engine: Engine) -> Nearest | None:
    """The cheapest policy that an engine can carry and of which the plan's promise was proven; else the cheapest whose
    mean loss met the limit; else what lost least. None where nothing was measured that it can carry."""
    limit = 0.0 if plan.evidence is None or plan.evidence.promise is None else plan.evidence.promise.limit
    found = [one for one in _measured(plan) if _can_carry(plan, engine, one.policy)]
    good = [one for one in found if one.proven] or [one for one in found if one.loss <= limit]
    if good:
        return min(good, key=lambda one: one.share)
    return min(found, key=lambda one: (one.loss, one.share), default=None)


def _measured(plan: Plan) -> Iterator[Nearest]:
    evidence = plan.evidence
    if evidence is None:
        return
    what = "the dense decoder's FLOPs" if evidence.search is None else f"dense {evidence.search.minimised}"
    for rung in () if evidence.promise is None else evidence.promise.tested:
        lost = (
            f"{rung.share:.3f} of {what}, mean loss {rung.loss:.4f} on {rung.n} samples that had no part in the choice"
        )
        yield Nearest(
            rung.policy, rung.share, rung.loss, rung.proven, f"{lost}, {'proven' if rung.proven else 'not proven'}"
        )
    for point in () if evidence.search is None else evidence.search.front:
        loss = point.loss
        lost = f"{point.share:.3f} of {what}, mean loss {loss.value:.4f} ({loss.low:.4f}-{loss.high:.4f})"
        text = f"{lost} on {loss.n} samples that also selected, not proven"
        yield Nearest(point.policy, point.share, loss.value, False, text)
    for row in evidence.rows:
        if row.role == "policy" and row.decoder_flops_ratio is not None:
            same, share = row.agreement, row.decoder_flops_ratio
            loss_value = 1 - same.value if row.loss is None else row.loss.value
            kept = f"{same.value:.3f} ({same.low:.3f}-{same.high:.3f}) of {same.n} whole answers as dense"
            text = f"{share:.3f} of dense decoder FLOPs, {kept}, on samples that the decision never saw, not proven"
            yield Nearest(row.policy, share, loss_value, False, text)


def _can_carry(plan: Plan, engine: Engine, policy: str) -> bool:
    spec = ModelSpec.from_config(plan.model.config)
    workload = plan.prediction[0].workload if plan.prediction else None
    try:
        schedule = parse(policy).schedule(spec, workload)
    except PlannerError:  # of a package that is not here, or taken from the profile
        return False
    return not schedule.empty and carried(engine, schedule, spec, visual_tokens(plan)).route is not None
