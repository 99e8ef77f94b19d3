"""Orders of picks over projected features: nested, the same in any batch, and without a matrix of all pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from planner.runtime.selection import orders
from tests.reference.orders import picks

Order = Callable[[Tensor, int, Tensor], Tensor]
ORDERS: dict[str, Order] = {
    "pivot_distance": lambda features, count, question: orders.pivot_distance(features, 4),
    "max_min_distance": lambda features, count, question: orders.max_min_distance(features, count),
    "determinantal": orders.determinantal,
}
every = pytest.mark.parametrize("name", ORDERS)


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def order(name: str, features: Tensor, question: Tensor, count: int) -> list[int]:
    """The first picks of one sample."""
    scores = ORDERS[name](features[None], count, question[None])[0]
    return scores.argsort(descending=True, stable=True)[:count].tolist()  # type: ignore[no-any-return]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_picks_are_those_of_the_definition(name: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        features, question = seeded(90, 24, seed=seed, dtype=dtype) + 0.4, seeded(5, 24, seed=seed + 9, dtype=dtype)
        wide = features.double(), question.double()
        assert order(name, features, question.mean(0), 12) == picks(name, *wide, count=12, pivots=4)


@every
def test_a_larger_budget_keeps_what_a_smaller_one_does(name: str) -> None:
    features, question = seeded(60, 16), seeded(16, seed=1)
    long = order(name, features, question, 14)
    for count in (1, 2, 5, 9):
        assert order(name, features, question, count) == long[:count]


@every
def test_a_piece_is_picked_from_alike_alone_and_beside_others(name: str) -> None:
    features, question = seeded(3, 40, 16), seeded(3, 16, seed=1)
    together = ORDERS[name](features, 9, question).argsort(dim=1, descending=True, stable=True)[:, :9]
    for piece in range(3):
        assert together[piece].tolist() == order(name, features[piece], question[piece], 9)


@pytest.mark.parametrize("name", ["max_min_distance", "determinantal"])
def test_copies_of_what_is_kept_come_last(name: str) -> None:
    """Pivots are chosen by norm alone, so copies may be among them."""
    distinct = torch.nn.functional.one_hot(torch.arange(5), 8).float() + 0.01
    features = torch.cat([distinct[:1].expand(6, -1), distinct])
    found = order(name, features, distinct.sum(0), 5)
    assert len({tuple(features[place].tolist()) for place in found}) == 5


def test_of_two_that_are_nearest_to_each_other_rounding_does_not_choose() -> None:
    """The pair has one distance, computed twice: the earlier token is picked, whichever sum came out larger."""
    features = torch.zeros(6, 4)
    features[0], features[1] = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0])
    features[2:, 2] = 1.0
    features[2:, 3] = torch.tensor([0.0, 0.1, 0.2, 0.3])
    for nudge in (-3e-7, 3e-7):
        moved = features.clone()
        moved[0, 2], moved[1, 2] = nudge, -nudge
        assert order("max_min_distance", moved, torch.zeros(4), 2) == [0, 1]


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.elements = max(self.elements, output.numel())
        return output


@every
def test_no_matrix_of_all_pairs_is_held(name: str) -> None:
    tokens = 4000
    features, question = seeded(1, tokens, 8), seeded(1, 8, seed=1)
    with _Largest() as largest:
        ORDERS[name](features, 20, question)
    assert largest.elements <= tokens * tokens / 8
