"""The findings of a probe, to be shown as a page or as text: sentences, tables, and pictures drawn on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.profile import ProbeResult, PromptShape
from planner.report.charts import Series


@dataclass(frozen=True)
class Table:
    """Formatted cells under headers; the first column names the row. `prose`: the others hold words, no numbers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False


@dataclass(frozen=True)
class Picture:
    """A caption that says how to read it, and what draws it as SVG text."""

    caption: str
    draw: Callable[[], str]


@dataclass(frozen=True)
class Section:
    """One probe's part of a report.

    Attributes:
        name: of the probe.
        about: what was measured and where the method is from.
        findings: what it says about this model, the most important sentence first.
    """

    name: str
    title: str
    about: str
    findings: Sequence[str]
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Subject:
    """What a section is made from.

    Attributes:
        probe: what was found.
        prompt: token counts of the samples.
        layers, heads: of the text decoder.
        marks: layers to point out in pictures: a plan's own, else those that influence suggests.
        limit: share of the dense answers that counts as unharmed.
        suggested: filter, budget and exit that influence suggests, by share of the samples.
        others: the profile's other probes, by name, for what two of them say together.
        arrays: the probe's per-sample tables, ``column.data`` and ``column.lengths``; empty where they are not at hand.
    """

    probe: ProbeResult
    prompt: PromptShape
    layers: int
    heads: int
    marks: Mapping[str, float] = field(default_factory=dict)
    limit: float = 0.98
    suggested: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    others: Mapping[str, ProbeResult] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def values(self) -> Mapping[str, Any]:
        return self.probe.values

    def rows(self, column: str) -> list[NDArray[Any]]:
        """One array per sample; empty where the tables are not at hand or the column is not theirs."""
        if f"{column}.data" not in self.arrays:
            return []
        ends = np.cumsum(self.arrays[f"{column}.lengths"])[:-1]
        return list(np.split(self.arrays[f"{column}.data"], ends))


# -- reading entries --------------------------------------------------------------------------------------------------


def series(entry: Any) -> Series:
    """A ``{value, low, high}`` entry of lists, or a list of such entries, as a series; null becomes NaN."""
    if isinstance(entry, Mapping):
        return Series(*(numbers(entry[name]) for name in ("value", "low", "high")))
    return Series(*(numbers([one[name] for one in entry]) for name in ("value", "low", "high")))


def numbers(values: Sequence[float | None]) -> list[float]:
    """JSON numbers; null becomes NaN."""
    return [math.nan if value is None else float(value) for value in values]


def highest(values: Sequence[float]) -> int:
    """Where the largest value is; 0 where all are NaN."""
    return int(np.nanargmax(values)) if not np.isnan(values).all() else 0


def lowest(values: Sequence[float]) -> int:
    """Where the smallest value is; 0 where all are NaN."""
    return int(np.nanargmin(values)) if not np.isnan(values).all() else 0


# -- words for numbers ------------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """A share in percent, with a decimal where rounding would make it all, nothing, or hide a small one."""
    if share is None or math.isnan(share):
        return ""
    exact = 100 * share
    fine = 0 < exact < 1 or 99 < exact < 100
    return f"{exact:.1f} %" if fine else f"{exact:.0f} %"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with significant digits; empty where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def shown(entry: Mapping[str, Any] | None, shares: bool = False, digits: int = 3) -> str:
    """A value with its interval, such as ``0.973 (0.951-0.985)``; empty where there is none."""
    if entry is None or entry["value"] is None:
        return ""

    def one(value: float | None) -> str:
        return f"{value:.{digits}f}" if shares and value is not None else figure(value, digits)

    if entry["low"] is None:
        return one(entry["value"])
    return f"{one(entry['value'])} ({one(entry['low'])}-{one(entry['high'])})"


def points_of(found: Series, at: int, shares: bool = False) -> str:
    """`shown` for one position of a series."""
    entry = {
        name: None if math.isnan(values[at]) else values[at] for name, values in zip(found._fields, found, strict=True)
    }
    return shown(entry, shares)


def layer_names(layers: Collection[int]) -> str:
    """Layers in words: ``layers 0-2 and 5``."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    if not texts:
        return "no layer"
    listed = " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
    return f"{'layer' if len(layers) == 1 else 'layers'} {listed}"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 sample``, ``no samples``, ``5 samples``."""
    return f"{number or 'no'} {noun if number == 1 else plural or noun + 's'}"


def per_layer_table(title: str, columns: Mapping[str, Series], shares: bool = False) -> Table:
    """One row per layer, each value with its interval."""
    layers = len(next(iter(columns.values())).value)
    rows = [[str(i), *(points_of(found, i, shares) for found in columns.values())] for i in range(layers)]
    return Table(title, ("layer", *columns), rows)
