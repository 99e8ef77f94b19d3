"""What a prefill computed: tokens per layer, and which tokens were kept."""

from __future__ import annotations

from dataclasses import dataclass

from planner.runtime.execution.prefill import Record


@dataclass(frozen=True)
class Report:
    """What the last prefill computed.

    Attributes:
        visual, text: tokens that each layer ran, per sample: ``visual[layer][sample]``.
    """

    visual: tuple[tuple[int, ...], ...]
    text: tuple[tuple[int, ...], ...]


def report_of(record: Record) -> Report:
    """Tokens per layer of a prefill."""
    return Report(tuple(visual for visual, _ in record.tokens), tuple(text for _, text in record.tokens))


def kept_of(record: Record) -> list[list[list[int]]]:
    """``kept[select][sample]``: visual tokens numbered among the sample's own, context tokens in the prompt."""
    number = record.visual.cumsum(1) - 1
    found = []
    for select, rows in zip(record.schedule.selects, record.kept, strict=True):
        index = rows.index if select.of == "context" else number.gather(1, rows.index.clamp(min=0))
        found.append([sample[held].tolist() for sample, held in zip(index, rows.filled, strict=True)])
    return found
