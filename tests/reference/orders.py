"""Orders of picks over visual features, from their definitions: every pair is looked at, nothing is updated."""

from __future__ import annotations

import torch
from torch import Tensor


def picks(rank_by: str, features: Tensor, question: Tensor, count: int, pivots: int) -> list[int]:
    """Places of the tokens that are picked, in order.

    Args:
        features: ``[v, d]``.
        question: ``[t, d]`` embeddings of the text after the image.
        count: picks to make.
        pivots: of `pivot_distance`.
    """
    unit = features / features.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    match rank_by:
        case "pivot_distance":
            return _pivots_then_unlike(features.norm(dim=1), cosine, pivots)[:count]
        case "max_min_distance":
            return _max_min(1 - cosine, count)
        case "determinantal":
            return _determinantal(cosine, unit, question.mean(0), count)
    raise NotImplementedError(rank_by)


def _pivots_then_unlike(norm: Tensor, cosine: Tensor, pivots: int) -> list[int]:
    scaled = (norm / norm.max()).tolist()
    chosen: list[int] = []
    for _ in range(min(pivots, len(norm))):
        chosen.append(_first_best([(scaled[i], i) for i in range(len(norm)) if i not in chosen]))
    rest = [i for i in range(len(norm)) if i not in chosen]
    # To a millionth: tokens that are the same are equally like a pivot, however the sums were rounded.
    return chosen + sorted(rest, key=lambda i: round(1e6 * max(float(cosine[i, j]) for j in chosen)))


def _max_min(distance: Tensor, count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        rest = [i for i in range(len(distance)) if i not in chosen]
        against = chosen or rest
        chosen.append(
            _first_best([(min([float(distance[i, j]) for j in against if j != i] or [0.0]), i) for i in rest])
        )
    return chosen


def salient_then_distant(features: Tensor, attention: Tensor, salient: int, count: int) -> list[int]:
    """Places of the tokens picked: so many by attention, then the one farthest from all picked.

    Args:
        features: ``[v, d]``.
        attention: ``[v]``.
    """
    unit = features / features.norm(dim=1, keepdim=True)
    distance = 1 - unit @ unit.T
    chosen = sorted(range(len(unit)), key=lambda i: (-float(attention[i]), i))[: min(salient, count)]
    while len(chosen) < count:
        rest = [i for i in range(len(unit)) if i not in chosen]
        chosen.append(_first_best([(min(float(distance[i, j]) for j in chosen), i) for i in rest]))
    return chosen


def _first_best(gains: list[tuple[float, int]]) -> int:
    """Of all within a millionth of the largest gain the earliest: two tokens may be each other's nearest."""
    largest = max(gain for gain, _ in gains)
    return min(token for gain, token in gains if gain >= largest - 1e-6)


def _determinantal(cosine: Tensor, unit: Tensor, question: Tensor, count: int) -> list[int]:
    """Greedy, by the determinant of the kernel of all that is chosen and each token that could be."""
    toward = unit @ (question / question.norm())
    relevance = (toward - toward.min() + 1e-6) / (toward.max() - toward.min())
    kernel = relevance[:, None] * cosine * relevance[None]
    chosen: list[int] = []
    spanning: list[int] = []  # those that have a volume of their own
    for _ in range(count):
        rest = [i for i in range(len(kernel)) if i not in chosen]
        volume = float(torch.linalg.det(kernel[spanning][:, spanning])) if spanning else 1.0
        gains = {i: float(torch.linalg.det(kernel[[*spanning, i]][:, [*spanning, i]])) / volume for i in rest}
        # What is a millionth of a token's own relevance is nothing: it is like those that are chosen.
        gains = {i: gain if gain > 1e-6 * float(relevance[i]) ** 2 else 0.0 for i, gain in gains.items()}
        largest = max(gains.values())
        best = min(i for i, gain in gains.items() if gain >= largest * (1 - 1e-6))
        chosen.append(best)
        spanning += [best] if gains[best] > 0 else []
    return chosen
