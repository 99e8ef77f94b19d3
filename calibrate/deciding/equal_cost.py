"""Other policies at a plan's cost: a policy that can be compared has one number that says how much goes
(`Policy.scaled`); it is turned until the decoder FLOPs match."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from calibrate.deciding.objective import decoder_flops
from planner.errors import ExtensionError, InputError, nearest
from planner.policies import AnyPolicy, Policy, names, policy_class, usable
from planner.schedule import Schedule
from planner.spec import ModelSpec
from planner.workload import Workload

#: Prompts counted by their tokens before the image, of the image and after it.
Shapes = Counter[tuple[int, int, int]]
_BISECTIONS = 30


def comparable() -> tuple[str, ...]:
    """Names under which policies can be brought to a cost: those with a `Policy.scaled`, and their variants."""
    found = []
    for policy in usable():
        if not isinstance(policy, ExtensionError) and policy.scaled(0.5):
            found += [policy.name, *(f"{policy.name}-{variant}" for variant in policy.variants)]
    return tuple(found)


class EqualCost:
    """A budget, and what other policies make of it.

    Args:
        spec: the model.
        schedule: whose decoder FLOPs are the budget.
        shapes: prompts over which FLOPs are averaged.
    """

    def __init__(self, spec: ModelSpec, schedule: Schedule, shapes: Shapes) -> None:
        self.spec, self.shapes = spec, shapes
        self.budget_flops = mean_flops(spec, schedule, shapes)
        self._mean = _mean_workload(shapes)

    def schedule(self, policy: AnyPolicy) -> Schedule:
        """A policy on this model; budgets in tokens are those of the mean prompt."""
        return policy.schedule(self.spec, self._mean)

    def policy(self, name: str) -> Policy:
        """The member of a policy that drops as much as it can while costing no less than the budget.

        So a baseline is never given less compute than the plan, unless even its cheapest member costs more: then it is
        that one, and the table shows what it costs.

        Raises:
            InputError: there is no such policy, or nothing in it can be turned to a budget.
            ExtensionError: the package that adds it is broken.
        """
        policy, settings = _named(name)

        def forms(dropped: float) -> list[Policy]:
            return [form.model_copy(update=settings).fitted(self.spec) for form in policy.scaled(dropped)]

        cheapest = forms(1.0)
        enough = (i for i, form in enumerate(cheapest) if self._flops(form) <= self.budget_flops)
        index = next(enough, len(cheapest) - 1)
        low, high = 0.0, 1.0  # costs more, costs less
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._flops(forms(middle)[index]) >= self.budget_flops else (low, middle)
        # Rounded down, so that the cost is rounded up: at most one token in ten thousand.
        return forms(math.floor(low * 1e4) / 1e4)[index]

    def _flops(self, policy: Policy) -> float:
        return mean_flops(self.spec, self.schedule(policy), self.shapes)


def _named(name: str) -> tuple[type[Policy], dict[str, Any]]:
    """A policy that has a form for a given cost, and the settings of the variant that is meant."""
    base, _, variant = name.rpartition("-")
    if name not in names() and base in names() and variant in policy_class(base).variants:
        return policy_class(base), dict(policy_class(base).variants[variant])
    policy = policy_class(name) if name in names() else None
    if policy is None or not policy.scaled(0.5):
        known = comparable()
        raise InputError(
            f"policy '{name}' has no form for a given cost",
            f"{nearest(name, known)}Give one of {', '.join(known)}, or a full spelling: fastv:k=2,ratio=0.8",
        )
    return policy, {}


def _request(shape: tuple[int, int, int]) -> Workload:
    """One sample's tokens before the image, of the image and after it, as a request with a one-token answer."""
    system, visual, text = shape
    return Workload(visual_tokens=visual, text_tokens=text, system_tokens=system, output_tokens=1)


def workloads(shapes: Shapes) -> Iterator[tuple[Workload, int]]:
    """Requests, and how many samples are such."""
    for shape, count in shapes.items():
        yield _request(shape), count


def mean_flops(spec: ModelSpec, schedule: Schedule, shapes: Shapes) -> float:
    """Decoder FLOPs of one prefill, mean over the samples."""
    total = sum(decoder_flops(spec, request, schedule) * count for request, count in workloads(shapes))
    return total / shapes.total()


def _mean_workload(shapes: Shapes) -> Workload:
    def mean(part: int) -> int:
        return round(sum(shape[part] * count for shape, count in shapes.items()) / shapes.total())

    return _request((mean(0), mean(1), mean(2)))
