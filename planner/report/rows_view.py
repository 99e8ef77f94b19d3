"""Policies and controls as measured: a row each, under short names, the plan first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planner.evidence import Measured, Row
from planner.report.tables import table
from planner.report.units import percent, share_with_interval

ROW_HEADERS = ("policy", "accuracy", "as dense", "loss", "no end", "FLOPs", "KV cache", "prefill")
#: Controls by their roles.
_CONTROLS = {"plan": "plan", "dense": "dense", "floor": "dense again", "blind": "no picture"}
#: Rows of a table, in this order: the plan, other policies, controls.
_ORDER = {"plan": 0, "policy": 1, "random": 2, "resize": 3, "dense": 4, "floor": 5, "blind": 6}


def rows_table(rows: Sequence[Row], fmt: str = "table") -> str:
    """Executed policies and controls, one row each, and how they are spelled; empty columns are left out."""
    return table(*filled(ROW_HEADERS, evidence_rows(rows)), fmt) + "\n\n" + spellings(rows, fmt)


def evidence_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Cells under `ROW_HEADERS`, in the order of `named`."""
    return [
        [
            name,
            share_with_interval(row.accuracy),
            share_with_interval(row.agreement),
            with_interval(row.loss),
            "" if row.runaway is None else percent(row.runaway.value, 1),
            _share(row.decoder_flops_ratio),
            _share(row.kv_cache_ratio),
            "" if row.prefill_ms is None else f"{row.prefill_ms:.1f} ms",
        ]
        for name, row in named(rows)
    ]


def named(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Rows under short names: the plan, other policies, the best first, random, resize, dense, and its controls."""

    def place(row: Row) -> tuple[int, float]:
        name = base_name(row.policy)
        kept = row.agreement.value if row.loss is None else -row.loss.value
        return _ORDER[name if row.role == "policy" and name in _ORDER else row.role], -kept

    found: list[tuple[str, Row]] = []
    taken: Counter[str] = Counter()
    for row in sorted(rows, key=place):
        name = _CONTROLS.get(row.role, base_name(row.policy))
        taken[name] += 1
        found.append((name if taken[name] == 1 else f"{name} {taken[name]}", row))
    return found


def base_name(policy: str) -> str:
    """A spelling without its settings: ``prellm+visipruner``."""
    return "+".join(part.partition(":")[0] for part in policy.split("+"))


def spellings(rows: Sequence[Row], fmt: str = "table") -> str:
    """What the short names of `named` stand for, one a line."""
    pairs = [(name, row.policy) for name, row in named(rows) if name != row.policy]
    if fmt == "md":
        return "\n".join(f"- {name}: `{policy}`" for name, policy in pairs)
    return "\n".join(f"{name}: {policy}" for name, policy in pairs)


def filled(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells without the columns in which no row says anything."""
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
    return [headers[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _share(value: float | None) -> str:
    return "" if value is None else percent(value, 1)


def with_interval(measured: Measured | None, digits: int = 3) -> str:
    """A measured mean with its interval, such as ``0.973 (0.951-0.985)``."""
    if measured is None:
        return ""
    return f"{measured.value:.{digits}f} ({measured.low:.{digits}f}-{measured.high:.{digits}f})"
