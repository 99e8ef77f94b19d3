"""Mergeable statistics with confidence intervals.

Probes keep one small row per sample instead of running sums: a union of rows does not care about order or grouping, so
shards, processes and resumed runs give bit for bit the numbers of one uninterrupted run. Rows are a few kilobytes
(nothing of order n^2), and every summary is computed from the rows sorted by sample.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from planner.errors import CalibrationError

Array = NDArray[Any]
BOOTSTRAP_RESAMPLES = 1000
BOOTSTRAP_SEED = 0


class SampleTable:
    """Rows of named arrays, one row per sample id.

    A column's rows may differ in their first axis (tokens, groups), and share the others.
    """

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, Array]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, sample: object) -> bool:
        return sample in self._rows

    @property
    def ids(self) -> list[int]:
        """Sample ids, ascending."""
        return sorted(self._rows)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(next(iter(self._rows.values()), {}))

    @property
    def nbytes(self) -> int:
        """Bytes held by the rows."""
        return sum(array.nbytes for row in self._rows.values() for array in row.values())

    def add(self, sample: int, **columns: Any) -> None:
        """Add a row; scalars become arrays of one element.

        Raises:
            CalibrationError: the sample has a different row already.
        """
        row = {name: np.atleast_1d(np.asarray(value)).copy() for name, value in columns.items()}
        if sample in self._rows:
            _check_equal(sample, self._rows[sample], row)
        self._rows[sample] = row

    def merge(self, other: SampleTable) -> None:
        """Union of rows: associative, commutative and idempotent.

        Raises:
            CalibrationError: a sample has different rows in both.
        """
        for sample, row in other._rows.items():
            if sample in self._rows:
                _check_equal(sample, self._rows[sample], row)
            self._rows[sample] = row

    def column(self, name: str) -> Array:
        """A column whose rows have one shape, stacked by ascending id: ``[samples, ...]``."""
        return np.stack([self._rows[sample][name] for sample in self.ids])

    def rows(self, name: str) -> list[Array]:
        """A column's rows by ascending id."""
        return [self._rows[sample][name] for sample in self.ids]

    def arrays(self) -> dict[str, Array]:
        """Everything as flat arrays: ``ids``, and per column its rows one after another and their lengths."""
        if not self._rows:
            return {"ids": np.zeros(0, np.int64)}
        found: dict[str, Array] = {"ids": np.asarray(self.ids, np.int64)}
        for name in next(iter(self._rows.values())):
            rows = self.rows(name)
            found[f"{name}.data"] = np.concatenate(rows)
            found[f"{name}.lengths"] = np.asarray([len(row) for row in rows], np.int64)
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> SampleTable:
        """The inverse of `arrays`.

        Raises:
            ValueError, KeyError: they are no such arrays.
        """
        table = cls()
        ids = arrays["ids"]
        names = [name.removesuffix(".data") for name in arrays if name.endswith(".data")]
        for name in names:
            lengths = arrays[f"{name}.lengths"]
            whole = lengths.shape == ids.shape and (lengths >= 0).all() and lengths.sum() == len(arrays[f"{name}.data"])
            if not whole:
                raise ValueError(f"the rows of {name} are not those of {len(ids)} samples")
        split = {name: np.split(arrays[f"{name}.data"], np.cumsum(arrays[f"{name}.lengths"])[:-1]) for name in names}
        for position, sample in enumerate(ids):
            table.add(int(sample), **{name: rows[position] for name, rows in split.items()})
        return table


def _check_equal(sample: int, one: Mapping[str, Array], other: Mapping[str, Array]) -> None:
    if one.keys() != other.keys() or any(not np.array_equal(one[k], other[k], equal_nan=True) for k in one):
        raise CalibrationError(
            f"sample {sample} was measured twice with different results",
            "Merge only parts of one run: same model, samples, batch size and settings",
        )


def bootstrap(values: Array, statistic: str | float = "mean", confidence: float = 0.95) -> tuple[Array, Array]:
    """Percentile bootstrap interval over the first axis (samples), seeded: the same rows give the same interval.

    Args:
        values: ``[samples, ...]``; NaN marks a sample without a value, and is left out.
        statistic: ``"mean"`` or a quantile in [0, 1].
        confidence: of the two-sided interval.

    Returns:
        Lower and upper bounds ``[...]`` (NaN where no sample has a value).
    """
    values = np.asarray(values, np.float64)
    flat = values.reshape(len(values), -1)
    drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(0, len(flat), (BOOTSTRAP_RESAMPLES, len(flat)))
    tail = 50 * (1 - confidence)
    bounds = np.full((2, flat.shape[1]), np.nan)
    for column in range(flat.shape[1]):
        resampled = flat[:, column][drawn]
        resampled = resampled[~np.isnan(resampled).all(axis=1)]
        if len(resampled):
            mean_wanted = statistic == "mean"
            found = np.nanmean(resampled, 1) if mean_wanted else np.nanquantile(resampled, float(statistic), axis=1)
            bounds[:, column] = np.percentile(found, [tail, 100 - tail])
    return bounds[0].reshape(values.shape[1:]), bounds[1].reshape(values.shape[1:])


@functools.cache
def wilson(hits: int, n: int, confidence: float = 0.95, one_sided: bool = False) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); ``(0, 1)`` for no trials.

    With `one_sided` each bound alone holds with `confidence`.
    """
    if n == 0:
        return 0.0, 1.0
    # Two bounds that each hold with confidence c leave out (1 - c) on either side.
    both = 2 * confidence - 1 if one_sided else confidence
    interval = binomtest(hits, n).proportion_ci(both, method="wilson")
    return float(interval.low), float(interval.high)


def proportion(hits: int, n: int, confidence: float = 0.95) -> dict[str, float | int]:
    """A proportion as a JSON entry: value, Wilson interval, n."""
    low, high = wilson(hits, n, confidence)
    return {"value": hits / n if n else 0.0, "low": low, "high": high, "n": n}


def mean(values: Array, confidence: float = 0.95) -> dict[str, Any]:
    """Means over samples as a JSON entry: value, bootstrap interval, n; lists per remaining axis; NaN becomes None."""
    values = np.asarray(values, np.float64)
    low, high = bootstrap(values, "mean", confidence)
    present = ~np.isnan(values)
    total, count = np.where(present, values, 0).sum(axis=0), present.sum(axis=0)
    value = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return {"value": plain(value), "low": plain(low), "high": plain(high), "n": plain(count)}


def plain(value: Any) -> Any:
    """NumPy to JSON types; NaN becomes None."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
