"""What all pictures share: colours, figure, axes, marks, legend, and the SVG text at the end.

matplotlib is imported on first use only. Colours are Okabe and Ito's, which colour-blind readers tell apart; series
differ in marker and line style too, for print.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

INK, GRID, PALE = "#1d2733", "#e9edf1", "#d3dae2"
DENSE, PLAN, OTHER, MARK = "#8a939d", "#0072b2", "#e69f00", "#d55e00"
COLOURS = (PLAN, OTHER, "#009e73", "#cc79a7", "#56b4e9", "#7d6608")
MARKERS, STYLES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
#: Width and height in inches: on a phone letters are still read, on a desk they are no larger than the text.
SIZE = (5.0, 2.9)
PANELS_IN_A_ROW = 4
#: A dollar sign in a label is a dollar sign, and not the start of a formula.
_PLAIN: Any = {"text.parse_math": False}
#: Letters that a line of a legend holds, with some for each handle.
LINE_LETTERS = 68


def new_figure() -> tuple[Any, Any]:
    """A figure and its axes in the style of all pictures."""
    figure, panels = new_panels(1)
    axes = panels[0]
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    return figure, axes


def new_panels(count: int) -> tuple[Any, list[Any]]:
    """A figure and several axes in it, in one row or two."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = 1 if count <= PANELS_IN_A_ROW else 2
    ink: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**ink, **_PLAIN}):
        # Not pyplot: it keeps figures alive and picks a window system.
        figure = Figure(figsize=SIZE, layout="constrained", facecolor="none")
        panels = figure.subplots(rows, -(-count // rows), squeeze=False).ravel().tolist()
    for empty in panels[count:]:
        empty.remove()
    return figure, panels[:count]


def add_colour_bar(figure: Any, axes: Any, shown: Any, label: str) -> None:
    """What the colours of an image mean, beside its axes (one or several)."""
    bar = figure.colorbar(shown, ax=axes, pad=0.02, aspect=24)
    bar.set_label(label, color=INK)
    bar.ax.tick_params(labelcolor=INK, color=INK)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)


def label_axes(axes: Any, xlabel: str, ylabel: str, share: bool, log: bool) -> None:
    """Names of the axes; shares are shown whole and in percent."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if share:
        from matplotlib.ticker import PercentFormatter

        axes.set_ylim(0, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if log:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axes.set_yscale("log")
        # matplotlib would write powers as formulas, which are off.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def tick_whole_numbers(axis: Any) -> None:
    """Ticks at layers and heads only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=16, integer=True, steps=[1, 2, 4, 5, 10]))


def draw_marks(axes: Any, marks: Mapping[str, float]) -> None:
    """Vertical lines, named above the picture."""
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


def add_legend(figure: Any, axes: Any, series: int) -> None:
    """Names of several series."""
    if series > 1:
        handles, labels = axes.get_legend_handles_labels()
        columns = max(1, min(series, LINE_LETTERS // (max(map(len, labels)) + 8)))
        # Above the picture, where no data is.
        figure.legend(handles, labels, frameon=False, fontsize=9, ncols=columns, labelcolor=INK,
                      loc="outside upper left")  # fmt: skip


def sequential_colours() -> Any:
    """Pale yellow to blue, without the ends that blank cells would be taken for on white or on black."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["YlGnBu"](0.1 + 0.72 * np.arange(256) / 255))


def frame_cell(layer: int, head: int) -> Any:
    """An outline around a cell of a heat map."""
    from matplotlib.patches import Rectangle

    return Rectangle((layer - 0.5, head - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=1.6)


def to_svg(figure: Any) -> str:
    """A figure as SVG text, a function of what it shows alone."""
    import matplotlib
    from matplotlib.text import Text

    # Here, as legends and marks come after the figure was made.
    for label in figure.findobj(Text):
        label.set_parse_math(False)
    text = io.StringIO()
    # A fixed salt and no date.
    with matplotlib.rc_context({"svg.hashsalt": "plan", "svg.fonttype": "none", "font.family": "sans-serif", **_PLAIN}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
