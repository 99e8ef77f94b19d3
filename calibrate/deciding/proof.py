"""What samples prove about a few candidates: a ladder that was frozen before, tested rung by rung.

Everything here is in **losses**: a sample loses between 0 and 1 (or gains, down to -1, where a plan may do better than
the dense model), and `limit` is the largest expected loss a plan may have. An agreement of 0.98 is a limit of 0.02.

The promise: the probability, over draws of the samples, that the plan which is shipped has an expected loss above the
limit is at most ``1 - confidence``. The procedure is fixed sequence testing (Learn then Test, Angelopoulos et al.
2021): candidates are ordered before the samples are opened, the safest first. Each rung is tested at the whole level
``1 - confidence``, and the first that is not proven ends the procedure. So a false claim needs the first rung that is
truly bad to pass its own test, which happens with probability ``1 - confidence`` at most, however many rungs there are.

Rungs therefore cost no confidence, only time. A ladder that starts far on the safe side and takes small steps
(`calibrate.deciding.power.aims`) ends cheaper than a short one near the limit, whose first rung often fails and leaves
nothing (``python -m tests.simulate_proof`` measures both).

Tests (`calibrate.deciding.bounds`) need independent observations. Questions about one picture are none: the mean of
their losses counts as one. Where there are so few pictures that one question of each proves more
(`calibrate.deciding.power.few`), the first of each is counted; numbers of samples alone decide that, never losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.deciding.bounds import FloatArray, p_value, upper_bound
from calibrate.deciding.power import check_promise, few
from planner.errors import InputError
from planner.schedule import Schedule


@dataclass(frozen=True)
class Rung:
    """A candidate on a ladder.

    Attributes:
        policy: its spelling.
        schedule: what is executed.
        flops: what it costs, in the unit that the search minimises.
    """

    policy: str
    schedule: Schedule
    flops: float


@dataclass(frozen=True)
class Tested:
    """A rung on the certify samples.

    Attributes:
        loss: mean over the pictures of the mean over their samples.
        misses: samples that lost anything.
        n, pictures: samples, and independent observations among them.
        p: p-value of "the expected loss is the limit or more", the largest of all and of each kind that has a limit.
        proven: it and every rung before it were rejected at ``1 - confidence``.
        bound: the expected loss is below this, for all rungs of the ladder at once, with the confidence.
        kinds: mean loss of each kind of question.
    """

    rung: Rung
    loss: float
    misses: int
    n: int
    pictures: int
    p: float
    proven: bool
    bound: float
    kinds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Proof:
    """The outcome of `prove`.

    Attributes:
        limit, confidence: as they were asked for.
        rungs: length of the ladder.
        tested: rungs that were executed, in order.
    """

    limit: float
    confidence: float
    rungs: int
    tested: tuple[Tested, ...]

    @property
    def shipped(self) -> Tested | None:
        """The cheapest proven rung."""
        return min((one for one in self.tested if one.proven), key=lambda one: one.rung.flops, default=None)

    @property
    def best(self) -> Tested | None:
        """The rung of which most is proven, whether that is enough or not; of equal ones the cheapest."""
        return min(self.tested, key=lambda one: (one.bound, one.rung.flops), default=None)


def prove(
    ladder: Sequence[Rung],
    losses: Callable[[Rung], FloatArray],
    limit: float,
    confidence: float,
    *,
    binary: bool,
    pictures: Sequence[int] | None = None,
    kinds: Sequence[str] = (),
    kind_limit: float | None = None,
    complete: bool = False,
) -> Proof:
    """Test a ladder on samples that had no part in choosing it.

    Args:
        ladder: frozen candidates, the safest first (`calibrate.deciding.power.aims` says how safe).
        losses: executes a rung: one loss a sample, at most 1, and at least -1.
        limit: the largest expected loss.
        confidence: of the promise.
        binary: losses are 0 or 1. Decided by the kind of loss, never by looking at the values.
        pictures: one number a sample; samples with equal numbers are about one picture, so that their mean counts as
            one observation. None: each has its own.
        kinds: of question, one a sample; "" for none.
        kind_limit: the largest expected loss of each kind. A rung is then proven if all its hypotheses are rejected;
            such a test needs no correction (intersection-union), but as many samples of each kind.
        complete: execute the rungs after the first that is not proven too, for their bounds; they stay unproven.

    Raises:
        InputError: limit or confidence make no sense, or losses are out of range.
    """
    check_promise(limit, confidence)
    level, standing = 1 - confidence, True
    tested: list[Tested] = []
    of_kind = {kind: np.array([one == kind for one in kinds]) for kind in sorted({kind for kind in kinds if kind})}
    for rung in ladder:
        found = _checked(losses(rung), binary, rung)
        numbers = np.arange(len(found)) if pictures is None else np.asarray(pictures)
        units, exact = _observations(found, numbers, binary, limit, confidence)
        values = [p_value(units, limit, binary=exact)]
        if kind_limit is not None:
            for chosen in of_kind.values():
                ours, counted = _observations(found[chosen], numbers[chosen], binary, kind_limit, confidence)
                values.append(p_value(ours, kind_limit, binary=counted))
        standing = standing and max(values) <= level
        tested.append(
            Tested(
                rung=rung,
                loss=float(_per_picture(found, numbers).mean()),
                misses=int((found > 0).sum()),
                n=len(found),
                pictures=len(units),
                p=max(values),
                proven=standing,
                bound=upper_bound(units, level / len(ladder), limit, binary=exact),
                kinds={kind: float(found[chosen].mean()) for kind, chosen in of_kind.items()},
            )
        )
        if not standing and not complete:
            break
    return Proof(limit, confidence, len(ladder), tuple(tested))


def _observations(
    losses: FloatArray, pictures: NDArray[Any], binary: bool, limit: float, confidence: float
) -> tuple[FloatArray, bool]:
    """Independent losses, one a picture, and whether they are 0 or 1."""
    means = _per_picture(losses, pictures)
    if not binary or len(means) == len(losses):
        return means, binary
    if few(len(means), limit, confidence):
        _, first = np.unique(pictures, return_index=True)
        return losses[np.sort(first)], True
    return means, False


def _per_picture(losses: FloatArray, pictures: NDArray[Any]) -> FloatArray:
    """Mean losses of the samples about each picture, in the order of their first samples."""
    _, first, where = np.unique(pictures, return_index=True, return_inverse=True)
    means = np.bincount(where, losses) / np.bincount(where)
    return np.asarray(means[np.argsort(first)], np.float64)


def _checked(losses: Any, binary: bool, rung: Rung) -> FloatArray:
    found = np.asarray(losses, np.float64)
    inside = bool(np.isin(found, (0, 1)).all()) if binary else bool(((found >= -1) & (found <= 1)).all())
    if not len(found) or not inside:
        wanted = "0 or 1" if binary else "in [-1, 1]"
        raise InputError(f"losses of {rung.policy} are not all {wanted}", "A metric must give values from 0 to 1")
    return found
