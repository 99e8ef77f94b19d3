"""Pictures of cost tables: tokens per layer, where FLOPs, time and memory go, and the front of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.report.drawing import (
    COLOURS,
    DENSE,
    GRID,
    MARK,
    OTHER,
    PALE,
    STYLES,
    add_legend,
    label_axes,
    new_figure,
    tick_whole_numbers,
    to_svg,
)  # fmt: skip

#: Colours of stacked parts, in their order; there are at most nine classes of operations.
_PARTS = (*COLOURS, DENSE, PALE, MARK)


def short_names(policies: Sequence[str]) -> list[str]:
    """Policies without their keys, numbered where several have one name."""
    names = ["+".join(part.partition(":")[0] for part in policy.split("+")) for policy in policies]
    return [f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def staircase(names: Sequence[str], per_layer: Sequence[Sequence[float]], ylabel: str = "visual tokens") -> str:
    """Tokens in each layer: the first row, dense, as an area, the others as steps."""
    figure, axes = new_figure()
    edges = [layer - 0.5 for layer in range(len(per_layer[0]) + 1)]
    axes.stairs(per_layer[0], edges, fill=True, color=PALE, label=names[0])
    for number, (name, values) in enumerate(zip(names[1:], per_layer[1:], strict=True)):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}
        axes.stairs(values, edges, baseline=None, linewidth=2, label=name, **style)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    label_axes(axes, "decoder layer", ylabel, share=False, log=False)
    tick_whole_numbers(axes.xaxis)
    add_legend(figure, axes, max(len(names), 2))
    return to_svg(figure)


def stacked(
    names: Sequence[str], parts: Mapping[str, Sequence[float]], xlabel: str, level: tuple[str, float] | None = None
) -> str:
    """A bar for each row, of parts side by side.

    Args:
        parts: values of each part, one per row, in the order of the colours; parts that are nowhere are left out.
        level: a named vertical line (a device's memory).
    """
    figure, axes = new_figure()
    axes.grid(visible=False)
    axes.grid(axis="x", color=GRID)
    lefts = [0.0] * len(names)
    for (name, values), colour in zip(parts.items(), _PARTS, strict=False):
        if any(values):
            axes.barh(range(len(names)), values, left=lefts, height=0.66, color=colour, label=name)
        lefts = [left + value for left, value in zip(lefts, values, strict=True)]
    if level is not None:
        axes.axvline(level[1], color=MARK, linestyle="--", linewidth=1.4, label=level[0])
    axes.set_xlim(0, max(*lefts, level[1] if level else 0.0) * 1.04 or 1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    add_legend(figure, axes, len(parts) + 1)
    return to_svg(figure)


def front(
    settings: Sequence[tuple[float, float]], best: Sequence[tuple[float, float]], xlabel: str, ylabel: str
) -> str:
    """Settings of a sweep as points, and those that no other one beats as a line."""
    figure, axes = new_figure()
    axes.scatter(*zip(*settings, strict=True), s=12, color=PALE, linewidth=0, label="setting")
    axes.plot(
        *zip(*best, strict=True), color=OTHER, marker="o", markersize=4, linewidth=1.5, drawstyle="steps-post",
        label="front",
    )  # fmt: skip
    label_axes(axes, xlabel, ylabel, share=False, log=False)
    add_legend(figure, axes, 2)
    return to_svg(figure)
