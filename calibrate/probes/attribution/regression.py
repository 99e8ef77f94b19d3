"""The linear model: the normalised logit as a weighted sum of the intact heads (head attribution A.3, eq. 9)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet

from calibrate.probes.attribution.response import Vector
from planner.errors import InputError

ALPHA, L1_RATIO, MAX_ITER = 5e-4, 0.5, 1000
#: Every fifth family of masks is held out. Families are independent draws, so any fixed fifth is a random one.
HELD_OUT = 5
#: Masks between two looks at the held-out R^2, and how little it may move twice in a row to count as settled.
STEP, TOLERANCE = 1000, 0.003


@dataclass(frozen=True)
class Fit:
    """An elastic net and how well it does on the held-out masks.

    Attributes:
        coefficients: one per entry of the mask.
        r2: share of the held-out variance explained.
        pearson: correlation of predicted and true logits, held out.
        masks: masks used, training and held out.
        settled: True when the fit stopped before all masks were used, because the held-out R^2 had settled.
        converged: False when coordinate descent stopped at its iteration limit.
    """

    coefficients: Vector
    intercept: float
    r2: float
    pearson: float
    masks: int
    settled: bool = False
    converged: bool = True


def fit_heads(masks: np.ndarray, logits: Vector, family: int = 1) -> Fit:
    """Elastic net on four fifths of the masks ``[M, N]``, judged on the other fifth.

    Args:
        family: so many consecutive masks have something in common, and are held out or not together.

    Raises:
        InputError: fewer training masks than entries to weigh.
    """
    held_out = _held_out(len(masks), family)
    check_masks(len(masks), masks.shape[1], family=family)
    model = ElasticNet(alpha=ALPHA, l1_ratio=L1_RATIO, max_iter=MAX_ITER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `converged`
        model.fit(masks[~held_out].astype(np.float64), logits[~held_out])
    predicted, true = model.predict(masks[held_out].astype(np.float64)), logits[held_out]
    residual, total = ((true - predicted) ** 2).sum(), ((true - true.mean()) ** 2).sum()
    varies = predicted.std() > 0 and true.std() > 0
    return Fit(
        coefficients=np.asarray(model.coef_, np.float64),
        intercept=float(model.intercept_),
        r2=float(1 - residual / total) if total > 0 else 0.0,
        pearson=float(np.corrcoef(predicted, true)[0, 1]) if varies else 0.0,
        masks=len(masks),
        converged=bool(model.n_iter_ < MAX_ITER),
    )


def minimum(entries: int, family: int = 1) -> int:
    """Masks from which on four fifths of them are no fewer than the entries, in whole families."""
    families = -(-entries * HELD_OUT // ((HELD_OUT - 1) * family))
    # One family more where the last one would be held out.
    return family * next(n for n in (families, families + 1) if (~_held_out(n * family, family)).sum() >= entries)


def check_masks(masks: int, entries: int, setting: str = "masks", what: str = "entries", family: int = 1) -> None:
    """Refuse fewer masks than a fit of so many entries needs.

    Raises:
        InputError: there are; `setting` is what to raise.
    """
    if (~_held_out(masks, family)).sum() < entries:
        raise InputError(
            f"{masks} masks are too few to weigh {entries} {what}",
            f"Give {setting}={minimum(entries, family)} or more",
        )


def _held_out(masks: int, family: int) -> np.ndarray:
    held: np.ndarray = np.arange(masks) // family % HELD_OUT == HELD_OUT - 1
    return held


def attribute_entries(
    masks: torch.Tensor,
    respond: Callable[[torch.Tensor], Vector],
    early_stop: bool = True,
    step: int = STEP,
    family: int = 1,
) -> Fit:
    """Evaluate masks ``[M, N]`` and fit; with `early_stop` only until the held-out R^2 has settled.

    Settled means: between three looks, ``step`` masks apart, it moved by at most `TOLERANCE` both times.

    Args:
        family: as in `fit_heads`.

    Raises:
        InputError: fewer masks than a fit needs.
    """
    table = masks.numpy()
    logits = np.empty(0)
    seen: list[float] = []
    for first in range(0, len(masks), step):
        logits = np.concatenate([logits, respond(masks[first : first + step])])
        if not early_stop or len(logits) < minimum(masks.shape[1], family) or len(logits) == len(masks):
            continue
        found = fit_heads(table[: len(logits)], logits, family)
        seen.append(found.r2)
        if len(seen) >= 3 and max(abs(a - b) for a, b in zip(seen[-3:], seen[-2:], strict=False)) <= TOLERANCE:
            return Fit(**{**vars(found), "settled": True})
    return fit_heads(table, logits, family)
