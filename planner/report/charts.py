"""Pictures of a plan and a profile as SVG text, for the HTML report. matplotlib is imported on first use only."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from planner.plan import Plan, Row

#: One colour per role, readable in print and by colour-blind readers (Okabe and Ito's palette).
DENSE, PLAN, OTHER, MARK = "#999999", "#0072B2", "#E69F00", "#D55E00"


def staircase(plan: Plan) -> str | None:
    """Visual tokens per layer, dense and planned; None when the plan carries no prediction."""
    if not plan.prediction:
        return None
    figure, axes = _figure()
    layers = range(plan.model.layers)
    axes.bar(layers, plan.prediction[0].dense.visual_tokens_per_layer, color="#e4e4e4", width=0.92, label="dense")
    axes.bar(layers, plan.prediction[0].planned.visual_tokens_per_layer, color=PLAN, width=0.92, label="planned")
    alone = [i for i in layers if plan.decision.schedule.stage_of(i).visual_attention == "self"]
    if alone:
        heights = [plan.prediction[0].planned.visual_tokens_per_layer[i] for i in alone]
        axes.bar(alone, heights, color="#56B4E9", width=0.92, hatch="//", edgecolor="white", label="planned, alone")
    axes.set(xlabel="decoder layer", ylabel="visual tokens", xticks=list(layers)[:: max(1, len(layers) // 16)])
    # Above the picture: bars fill it.
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    return _svg(figure)


def accuracy_against_cost(rows: Sequence[Row]) -> str:
    """Accuracy (agreement where there are no answers) with its interval, over the share of dense decoder FLOPs."""
    figure, axes = _figure()
    for i, row in enumerate(rows):
        share = row.accuracy or row.agreement
        colour = DENSE if i == 0 else PLAN if i == 1 else OTHER
        error = [[share.value - share.low], [share.high - share.value]]
        axes.errorbar(row.decoder_flops_ratio, share.value, yerr=error, fmt="o", color=colour, capsize=3)
        axes.annotate(
            row.policy.split(":")[0], (row.decoder_flops_ratio, share.value), xytext=(7, 5), textcoords="offset points",
            fontsize=9,
        )  # fmt: skip
    axes.set(
        xlabel="decoder FLOPs, share of dense",
        ylabel="accuracy" if rows[0].accuracy else "agreement with dense",
        xlim=(0, 1.12),
        ylim=(0, 1.04),
    )
    return _svg(figure)


def trials_against_cost(trials: Sequence[tuple[float, float]], chosen: tuple[float, float] | None, limit: float) -> str:
    """Every candidate that was executed: agreement over the share of dense decoder FLOPs, and the limit it had to hold.

    Args:
        trials: (share of dense decoder FLOPs, agreement) per candidate.
        chosen: the plan's.
        limit: least agreement.
    """
    figure, axes = _figure()
    axes.scatter(*zip(*trials, strict=True), s=14, color=OTHER, label="candidate")
    if chosen is not None:
        axes.scatter(*chosen, s=60, color=PLAN, label="plan", zorder=3)
    axes.axhline(limit, color=MARK, linestyle=":", linewidth=1.2)
    axes.annotate("limit", (0, limit), xytext=(2, -11), textcoords="offset points", fontsize=8.5, color=MARK)
    axes.set(xlabel="decoder FLOPs, share of dense", ylabel="agreement with dense", xlim=(0, 1.05))
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return _svg(figure)


def per_layer(
    series: Mapping[str, Sequence[float]],
    ylabel: str,
    marks: Mapping[str, float] | None = None,
    xlabel: str = "decoder layer",
) -> str:
    """Lines over layers, with named vertical marks (a filtering layer, an exit layer)."""
    figure, axes = _figure()
    colours = (PLAN, OTHER, "#009E73", "#CC79A7", "#56B4E9", "#000000")
    for (name, values), colour in zip(series.items(), colours * len(series), strict=False):
        axes.plot(range(len(values)), values, marker="o", markersize=3.5, color=colour, label=name)
    for name, at in (marks or {}).items():
        axes.axvline(at, color=MARK, linestyle=":", linewidth=1.2)
        axes.annotate(name, (at, 1), xycoords=("data", "axes fraction"), xytext=(3, -11), textcoords="offset points",
                      fontsize=8.5, color=MARK)  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # Not pyplot: it keeps figures alive and picks a window system.
    figure = Figure(figsize=(5.6, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    # A fixed salt and no date: the same plan gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "plan", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
