"""Kinds of pictures as SVG text: lines with intervals, bars, heat maps, points.

matplotlib is imported on first use only. Colours are Okabe and Ito's, which colour-blind readers tell apart; series
differ in marker and line style too, for print.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

INK, GRID, PALE = "#1d2733", "#e9edf1", "#d3dae2"
DENSE, PLAN, OTHER, MARK = "#8a939d", "#0072b2", "#e69f00", "#d55e00"
COLOURS = (PLAN, OTHER, "#009e73", "#cc79a7", "#56b4e9", "#7d6608")
MARKERS, _STYLES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
#: Width and height in inches of a picture that shares a line with another, and of one that has its own.
HALF, WIDE = (5.6, 3.1), (11.4, 3.3)
#: Lines with more values than this have no marker at each.
MARKED = 32
#: Letters that a line of a legend holds, with some for each handle.
LINE_LETTERS = 78


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
        style = _STYLES[number % 2] if pairs else _STYLES[number % len(_STYLES)]
        marker = None if len(x) > MARKED else MARKERS[(number // 2 if pairs else number) % len(MARKERS)]
        # matplotlib leaves names with an underscore out of the legend.
        label = f"_{name}" if pairs and number % 2 else name
        axes.plot(x, value, marker=marker, markersize=3.8, linewidth=1.6, linestyle=style, color=colour, label=label)
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    _label(axes, xlabel, ylabel, share, log)
    if zoom:
        axes.set_ylim(0, None, auto=True)
        axes.autoscale(axis="y")
        axes.set_ylim(bottom=0)
    if whole:
        _whole(axes.xaxis)
    _draw_marks(axes, marks or {})
    draw_level(axes, level)
    _legend(figure, axes, len(series))
    return to_svg(figure)


def bars(
    names: Sequence[str],
    series: Mapping[str, Series],
    *,
    ylabel: str,
    xlabel: str = "",
    level: tuple[str, float] | None = None,
    share: bool = False,
    wide: bool = False,
) -> str:
    """Groups of bars with 95 % intervals, one group per name."""
    figure, axes = new_figure(WIDE if wide else HALF)
    width = 0.8 / len(series)
    for number, (name, (value, low, high)) in enumerate(series.items()):
        at = [i + (number - (len(series) - 1) / 2) * width for i in range(len(names))]
        axes.bar(at, value, width=width * 0.92, color=COLOURS[number % len(COLOURS)], label=name)
        for place, bottom, top in zip(at, low, high, strict=True):
            axes.plot([place, place], [bottom, top], color=INK, linewidth=1)
    step = -(-len(names) // (48 if wide else 24))
    axes.set_xticks(range(0, len(names), step), names[::step])
    _label(axes, xlabel, ylabel, share, False)
    draw_level(axes, level)
    _legend(figure, axes, len(series))
    return to_svg(figure)


def heat(
    cells: Sequence[Sequence[float]],
    *,
    label: str,
    xlabel: str = "decoder layer",
    ylabel: str = "head",
    low: float | None = None,
    high: float | None = None,
    diverging: bool = False,
    framed: Collection[tuple[int, int]] = (),
) -> str:
    """A table of values as colours.

    Args:
        cells: ``[columns, rows]``, such as layers and heads; NaN stays blank.
        label: what the colours mean, with its unit.
        diverging: colours on both sides of 0, as far in both.
        framed: cells ``(column, row)`` to point out.
    """
    figure, axes = new_figure()
    known = [value for column in cells for value in column if value == value]
    if diverging:
        high = max((abs(value) for value in known), default=1.0) or 1.0
        low = -high
    shown = axes.imshow(
        [list(row) for row in zip(*cells, strict=True)],
        cmap="PuOr_r" if diverging else _sequential(), vmin=low, vmax=high, aspect="auto", interpolation="none",
        origin="lower",
    )  # fmt: skip
    for column, row in framed:
        axes.add_patch(_frame(column, row))
    axes.grid(visible=False)
    _label(axes, xlabel, ylabel, False, False)
    _whole(axes.xaxis)
    _whole(axes.yaxis)
    bar = figure.colorbar(shown, ax=axes, pad=0.02, aspect=24)
    bar.set_label(label, color=INK)
    bar.ax.tick_params(labelcolor=INK, color=INK)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)
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
    _label(axes, xlabel, ylabel, share, False)
    _legend(figure, axes, len(groups) + bool(curve))
    return to_svg(figure)


# -- parts ------------------------------------------------------------------------------------------------------------


def new_figure(size: tuple[float, float] = HALF) -> tuple[Any, Any]:
    """A figure and its axes in the style of all pictures."""
    import matplotlib
    from matplotlib.figure import Figure

    ink: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context(ink):
        # Not pyplot: it keeps figures alive and picks a window system.
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    return figure, axes


def _label(axes: Any, xlabel: str, ylabel: str, share: bool, log: bool) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if share:
        from matplotlib.ticker import PercentFormatter

        axes.set_ylim(0, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if log:
        axes.set_yscale("log")


def _whole(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=16, integer=True, steps=[1, 2, 4, 5, 10]))


def _draw_marks(axes: Any, marks: Mapping[str, float]) -> None:
    first, last = axes.get_xlim()
    ends = [first, first]  # how far names reach in the two rows above the picture
    for name, at in sorted(marks.items(), key=lambda mark: mark[1]):
        axes.axvline(at, color=MARK, linestyle=":", linewidth=1.2)
        half = 0.012 * len(name) * (last - first) / 2
        row = 0 if at - half > ends[0] or ends[0] <= ends[1] else 1
        ends[row] = at + half
        axes.annotate(
            name, (at, 1), xycoords=("data", "axes fraction"), xytext=(0, 3 + 11 * row), textcoords="offset points",
            fontsize=8.5, color=MARK, ha="center",
        )  # fmt: skip


def draw_level(axes: Any, level: tuple[str, float] | None, colour: str = DENSE) -> None:
    """A named horizontal line; nothing for None."""
    if level is None:
        return
    name, at = level
    axes.axhline(at, color=colour, linestyle="--", linewidth=1.1)
    axes.annotate(
        name, (1, at), xycoords=("axes fraction", "data"), xytext=(-2, -10), textcoords="offset points",
        fontsize=8.5, color=colour, ha="right",
    )  # fmt: skip


def _legend(figure: Any, axes: Any, series: int) -> None:
    if series > 1:
        handles, labels = axes.get_legend_handles_labels()
        columns = max(1, min(series, LINE_LETTERS // (max(map(len, labels)) + 8)))
        # Above the picture, where no data is.
        figure.legend(handles, labels, frameon=False, fontsize=9, ncols=columns, labelcolor=INK,
                      loc="outside upper left")  # fmt: skip


def _sequential() -> Any:
    """Pale yellow to blue, without the ends that blank cells would be taken for on white or on black."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap([matplotlib.colormaps["YlGnBu"](0.1 + 0.72 * step / 255) for step in range(256)])


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=1.6)


def to_svg(figure: Any) -> str:
    """A figure as SVG text, a function of what it shows alone."""
    import matplotlib

    text = io.StringIO()
    # A fixed salt and no date.
    with matplotlib.rc_context({"svg.hashsalt": "plan", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
