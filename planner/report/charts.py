"""Kinds of pictures as SVG text: lines with intervals, bars, heat maps of heads and of a picture's places, points."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from planner.report.drawing import (
    COLOURS,
    INK,
    MARK,
    MARKERS,
    STYLES,
    add_colour_bar,
    add_legend,
    draw_level,
    draw_marks,
    frame_cell,
    label_axes,
    new_figure,
    new_panels,
    sequential_colours,
    tick_whole_numbers,
    to_svg,
)

#: Lines with more values than this have no marker at each.
MARKED = 32
#: Bars that can be named below; of more, every second or third is.
MOST_NAMES = 24


class Series(NamedTuple):
    """Values with the bounds of their intervals; NaN where there is none."""

    value: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def exact(values: Sequence[float]) -> Series:
    """A series without intervals."""
    nothing = [float("nan")] * len(values)
    return Series(values, nothing, nothing)


def lines(
    x: Sequence[float],
    series: Mapping[str, Series],
    *,
    xlabel: str,
    ylabel: str,
    marks: Mapping[str, float] | None = None,
    level: tuple[str, float] | None = None,
    share: bool = False,
    zoom: bool = False,
    log: bool = False,
    pairs: bool = False,
    whole: bool = True,
) -> str:
    """Lines with shaded 95 % intervals.

    Args:
        marks: named vertical lines (a filtering layer, an exit layer).
        level: a named horizontal line (chance, a limit).
        share: the values are shares; the axis shows all of 0 to 100 %, with `zoom` only what is needed.
        log: logarithmic values.
        pairs: every two series belong together and share a colour; the second one is dashed and not in the legend.
        whole: x are whole numbers (layers), ticked as such.
    """
    figure, axes = new_figure()
    for number, (name, (value, low, high)) in enumerate(series.items()):
        colour = COLOURS[(number // 2 if pairs else number) % len(COLOURS)]
        style = STYLES[number % 2] if pairs else STYLES[number % len(STYLES)]
        marker = None if len(x) > MARKED else MARKERS[(number // 2 if pairs else number) % len(MARKERS)]
        # matplotlib leaves names with an underscore out of the legend.
        label = f"_{name}" if pairs and number % 2 else name
        axes.plot(x, value, marker=marker, markersize=3.8, linewidth=1.6, linestyle=style, color=colour, label=label)
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    label_axes(axes, xlabel, ylabel, share, log)
    if zoom:
        axes.autoscale(axis="y")
        axes.set_ylim(bottom=0)
    if whole:
        tick_whole_numbers(axes.xaxis)
    draw_marks(axes, marks or {})
    draw_level(axes, level)
    add_legend(figure, axes, len(series))
    return to_svg(figure)


def bars(
    names: Sequence[str],
    series: Mapping[str, Series],
    *,
    ylabel: str,
    xlabel: str,
    share: bool = False,
) -> str:
    """Groups of bars with 95 % intervals, one group per name; `share` as in `lines`."""
    figure, axes = new_figure()
    width = 0.8 / len(series)
    for number, (name, (value, low, high)) in enumerate(series.items()):
        at = [i + (number - (len(series) - 1) / 2) * width for i in range(len(names))]
        axes.bar(at, value, width=width * 0.92, color=COLOURS[number % len(COLOURS)], label=name)
        for place, bottom, top in zip(at, low, high, strict=True):
            axes.plot([place, place], [bottom, top], color=INK, linewidth=1)
    step = -(-len(names) // MOST_NAMES)
    axes.set_xticks(range(0, len(names), step), names[::step])
    label_axes(axes, xlabel, ylabel, share, False)
    add_legend(figure, axes, len(series))
    return to_svg(figure)


def heat(
    cells: Sequence[Sequence[float]],
    *,
    label: str,
    low: float | None = None,
    high: float | None = None,
    diverging: bool = False,
    framed: Collection[tuple[int, int]] = (),
    xlabel: str = "decoder layer",
    ylabel: str = "head",
) -> str:
    """Values of heads as colours.

    Args:
        cells: ``[layers, heads]``, or whatever `xlabel` and `ylabel` name; NaN stays blank.
        label: what the colours mean, with its unit.
        low, high: where colours end; None: where the values do.
        diverging: colours on both sides of 0, as far in both.
        framed: ``(layer, head)`` to point out.
    """
    figure, axes = new_figure()
    known = [value for column in cells for value in column if value == value]
    if diverging:
        high = max((abs(value) for value in known), default=1.0) or 1.0
        low = -high
    shown = axes.imshow(
        [list(row) for row in zip(*cells, strict=True)],
        cmap="PuOr_r" if diverging else sequential_colours(), vmin=low, vmax=high, aspect="auto", interpolation="none",
        origin="lower",
    )  # fmt: skip
    for layer, head in framed:
        axes.add_patch(frame_cell(layer, head))
    axes.grid(visible=False)
    label_axes(axes, xlabel, ylabel, False, False)
    tick_whole_numbers(axes.xaxis)
    tick_whole_numbers(axes.yaxis)
    add_colour_bar(figure, axes, shown, label)
    return to_svg(figure)


def pictures(places: Mapping[str, Sequence[Sequence[float]]], *, label: str) -> str:
    """Values of a picture's places as colours, a panel for each name, ``[rows, columns]`` with the top row on top.

    Args:
        label: what the colours mean; they are the same in all panels.
    """
    figure, panels = new_panels(len(places))
    highest = max(value for cells in places.values() for row in cells for value in row)
    for axes, (name, cells) in zip(panels, places.items(), strict=True):
        shown = axes.imshow(
            [list(row) for row in cells], cmap=sequential_colours(), vmin=0, vmax=highest, interpolation="none"
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=9, color=INK)
    add_colour_bar(figure, panels, shown, label)
    return to_svg(figure)


def points(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    curve: Sequence[tuple[float, float]] = (),
    curve_name: str = "",
    share: bool = False,
) -> str:
    """Points in named groups, and a curve through them; with `share` the values are shares, and all of 0 to 100 % is
    shown."""
    figure, axes = new_figure()
    for number, (name, at) in enumerate(groups.items()):
        x, y = zip(*at, strict=True) if at else ((), ())
        marker = MARKERS[number % len(MARKERS)]
        colour = COLOURS[number % len(COLOURS)]
        axes.scatter(x, y, s=22, alpha=0.85, linewidth=0, color=colour, marker=marker, label=name)
    if curve:
        axes.plot(*zip(*curve, strict=True), color=MARK, linewidth=1.5, label=curve_name)
    label_axes(axes, xlabel, ylabel, share, False)
    add_legend(figure, axes, len(groups) + bool(curve))
    return to_svg(figure)
