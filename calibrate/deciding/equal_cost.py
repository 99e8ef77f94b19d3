"""Other policies at a plan's cost: each published policy has one number that says how much goes; it is turned until the
decoder FLOPs match."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

from calibrate.deciding.search import decoder_flops
from planner.errors import InputError
from planner.policies import Composition, FastV, FitPrune, Policy, PreLLM, PyramidDrop, Random, SparseVLM
from planner.policies.base import nearest
from planner.schedule import Schedule
from planner.spec import ModelSpec
from planner.workload import Workload

#: Prompts counted by their tokens before the image, of the image and after it.
Shapes = Counter[tuple[int, int, int]]
#: A policy that drops the more, the nearer its argument is to 1.
Scaled = Callable[[float], Policy]

_BISECTIONS = 30
#: Shares that keep the published proportions of SparseVLM's budgets: 300, 200 and 110 of 576.
_SPARSEVLM = (round(200 / 300, 4), round(110 / 200, 4))


def _share(dropped: float) -> float:
    """What is kept: neither everything nor nothing, which are no shares; one token in ten thousand less or more."""
    return min(max(round(1 - dropped, 4), 1e-4), 1 - 1e-4)


#: Per policy, the forms that are tried: the first whose cheapest member is cheap enough is used. Policies that rank by
#: attention start after layer 1 where the published depth alone costs more than the plan.
SCALED: dict[str, tuple[Scaled, ...]] = {
    "fastv": (lambda x: FastV(k=2, ratio=x), lambda x: FastV(k=1, ratio=x)),
    "random": (lambda x: Random(k=2, ratio=x), lambda x: Random(k=1, ratio=x)),
    "pyramiddrop": (
        lambda x: PyramidDrop(keep=_share(x)),
        lambda x: PyramidDrop(layers=(1, 2, 3), keep=_share(x)),
    ),
    "sparsevlm": (
        lambda x: SparseVLM(keep=(_share(x), *_SPARSEVLM)),
        lambda x: SparseVLM(layers=(1, 2, 3), keep=(_share(x), *_SPARSEVLM)),
    ),
    "fitprune": (lambda x: FitPrune(reduction=min(max(x, 1e-4), 1 - 1e-4)),),
    "prellm": (lambda x: PreLLM(keep=_share(x)),),
    "prellm-norm": (lambda x: PreLLM(keep=_share(x), rank_by="norm"),),
}


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

    def schedule(self, policy: Policy | Composition) -> Schedule:
        """A policy on this model; budgets in tokens are those of the mean prompt."""
        return policy.schedule(self.spec, self._mean)

    def policy(self, name: str) -> Policy:
        """The member of a policy that drops as much as it can while costing no less than the budget.

        So a baseline is never given less compute than the plan, unless even its cheapest member costs more: then it is
        that one, and the table shows what it costs.

        Raises:
            InputError: there is no such policy, or nothing in it can be turned to a budget.
        """
        if name not in SCALED:
            raise InputError(
                f"policy '{name}' has no form for a given cost",
                f"{nearest(name, SCALED)}Give one of {', '.join(SCALED)}, or a full spelling: fastv:k=2,ratio=0.8",
            )
        forms = SCALED[name]
        form = next((form for form in forms if self._flops(form(1.0)) <= self.budget_flops), forms[-1])
        low, high = 0.0, 1.0  # costs more, costs less
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._flops(form(middle)) >= self.budget_flops else (low, middle)
        # Rounded down, so that the cost is rounded up: at most one token in ten thousand.
        return form(math.floor(low * 1e4) / 1e4)

    def _flops(self, policy: Policy) -> float:
        return mean_flops(self.spec, self.schedule(policy), self.shapes)


def workload(shape: tuple[int, int, int]) -> Workload:
    """One sample's tokens before the image, of the image and after it, as a request with a one-token answer."""
    system, visual, text = shape
    return Workload(visual_tokens=visual, text_tokens=text, system_tokens=system, output_tokens=1)


def workloads(shapes: Shapes) -> Iterator[tuple[Workload, int]]:
    """Requests, and how many samples are such."""
    for shape, count in shapes.items():
        yield workload(shape), count


def mean_flops(spec: ModelSpec, schedule: Schedule, shapes: Shapes) -> float:
    """Decoder FLOPs of one prefill, mean over the samples."""
    total = sum(decoder_flops(spec, request, schedule) * count for request, count in workloads(shapes))
    return total / shapes.total()


def _mean_workload(shapes: Shapes) -> Workload:
    def mean(part: int) -> int:
        return round(sum(shape[part] * count for shape, count in shapes.items()) / shapes.total())

    return workload((mean(0), mean(1), mean(2)))
