"""Losses along long answers: where in the dense model's answer a token is lost, as a table and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from planner.evidence import LossName, Place, Row
from planner.report.rows_view import named, with_interval


def along_headers(rows: Sequence[Row]) -> list[str]:
    """One column for each row that was measured token by token; none where no row was."""
    names = [name for name, _ in _measured(rows)]
    return ["tokens of the answer", *names, "answers"] if names else []


def along_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Cells under `along_headers`: a row for each stretch of the answers, and the mean loss of a token there."""
    columns = [row.along for _, row in _measured(rows)]
    return [
        [_spelled(places[0]), *(with_interval(place.loss) for place in places), str(places[0].loss.n)]
        for places in zip(*columns, strict=True)
    ]


def where_most_is_lost(rows: Sequence[Row]) -> str:
    """The stretch in which the plan loses most, one sentence; empty where the plan was not measured token by token."""
    planned = next((row for row in rows if row.role == "plan" and row.along), None)
    if planned is None:
        return ""
    worst = max(planned.along, key=lambda place: place.loss.value)
    if worst.loss.value <= 0:
        return "Along its answers the plan lost nothing."
    reach = f"{worst.loss.n} answers that reach so far"
    return f"Along an answer the plan loses most at {_spelled(worst)}: {with_interval(worst.loss)} on {reach}."


def along_legend(loss: LossName) -> str:
    """What is lost at a token."""
    if loss == "nll":
        return "In nats: by how much less likely a token of the dense model's answer became."
    return "A token is lost where the policy would have gone on otherwise than the dense model's answer."


def _measured(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    return [(name, row) for name, row in named(rows) if row.along and row.role != "dense"]


def _spelled(place: Place) -> str:
    return f"token {place.first}" if place.first == place.last else f"tokens {place.first}-{place.last}"
