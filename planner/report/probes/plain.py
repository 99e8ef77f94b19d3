"""A probe that no renderer is written for: its values as they are, single ones and lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.report.section import Section, Subject, Table, figure

_SINGLE = (str, int, float, bool, type(None))


def section(name: str, subject: Subject) -> Section:
    """One table of single values, and for each group of lists of one length a table with a row per entry."""
    rows: list[list[str]] = []
    tables: list[Table] = []
    _collect(subject.values, (), rows, tables)
    single = [Table("Values", ("value", ""), rows)] if rows else []
    shown = f"Measured on {subject.probe.n} samples."
    return Section(name, name.replace("_", " ").capitalize(), shown, [], (), [*single, *tables])


def _collect(values: Mapping[str, Any], path: tuple[str, ...], rows: list[list[str]], tables: list[Table]) -> None:
    """Sort what is found under `path` into rows of single values and tables of lists."""
    columns: dict[int, dict[str, Sequence[Any]]] = {}
    for key, value in values.items():
        place = (*path, str(key))
        if isinstance(value, Mapping):
            _collect(value, place, rows, tables)
        elif isinstance(value, _SINGLE):
            rows.append([", ".join(place), _cell(value)])
        elif all(isinstance(item, _SINGLE) for item in value):
            columns.setdefault(len(value), {})[str(key)] = value
        elif _is_matrix(value):
            body = [[str(index), *map(_cell, row)] for index, row in enumerate(value)]
            tables.append(Table(_title(place), ("", *map(str, range(len(value[0])))), body))
        else:  # a list of groups, or of lists of different lengths
            _collect({str(index): item for index, item in enumerate(value)}, place, rows, tables)
    for length, lists in columns.items():
        body = [[str(index), *(_cell(one[index]) for one in lists.values())] for index in range(length)]
        tables.append(Table(_title(path) or "Lists", ("", *lists), body))


def _is_matrix(value: Sequence[Any]) -> bool:
    """A list of lists of single values, all of one length."""
    rows = [row for row in value if isinstance(row, Sequence) and not isinstance(row, str)]
    same = len(rows) == len(value) and len({len(row) for row in rows}) == 1
    return same and all(isinstance(item, _SINGLE) for row in rows for item in row)


def _title(path: tuple[str, ...]) -> str:
    return ", ".join(path).replace("_", " ").capitalize()


def _cell(value: Any) -> str:
    if isinstance(value, (str, bool)) or value is None:
        return "" if value is None else str(value).lower() if isinstance(value, bool) else value
    return figure(float(value)) if isinstance(value, float) else f"{value:,}"
