"""Pictures of a plan: its staircase, what it keeps against cost, and the candidates that were tried."""

from __future__ import annotations

from collections.abc import Sequence

from planner.evidence import Measured, Row
from planner.plan import Plan
from planner.report.drawing import (
    COLOURS,
    DENSE,
    MARK,
    MARKERS,
    OTHER,
    PALE,
    PLAN,
    add_legend,
    draw_level,
    label_axes,
    new_figure,
    tick_whole_numbers,
    to_svg,
)
from planner.report.rows_view import base_name

#: Layers in which no visual token sees another one, by what it sees instead: colour, hatching and name.
_ISOLATED = {
    "self": ("#56b4e9", "//", "planned, isolated"),
    "prefix": ("#009e73", "\\\\", "planned, isolated behind text"),
    "skip": ("#cc79a7", "..", "planned, passing by"),
}


def visual_tokens(plan: Plan) -> str | None:
    """Visual tokens per layer, dense and planned; None when the plan carries no prediction."""
    if not plan.prediction:
        return None
    figure, axes = new_figure()
    layers = range(plan.model.layers)
    axes.bar(layers, plan.prediction[0].dense.visual_tokens_per_layer, color=PALE, width=0.92, label="dense")
    axes.bar(layers, plan.prediction[0].planned.visual_tokens_per_layer, color=PLAN, width=0.92, label="planned")
    planned = plan.prediction[0].planned.visual_tokens_per_layer
    for rule, (colour, hatch, label) in _ISOLATED.items():
        isolated = [i for i in layers if plan.decision.schedule.stage_of(i).visual_attention == rule]
        if isolated:
            heights = [planned[i] for i in isolated]
            axes.bar(isolated, heights, color=colour, width=0.92, hatch=hatch, edgecolor="white", label=label)
    label_axes(axes, "decoder layer", "visual tokens", share=False, log=False)
    tick_whole_numbers(axes.xaxis)
    add_legend(figure, axes, len(axes.get_legend_handles_labels()[0]))
    return to_svg(figure)


def kept_against_cost(rows: Sequence[Row], front: Sequence[tuple[float, Measured]] = ()) -> str:
    """Whole answers as dense, with their intervals, over the share of dense decoder FLOPs.

    A row that would hide another stands beside it. Controls that cost no such share are levels.

    Args:
        rows: the evaluation's.
        front: share of decoder FLOPs and mean loss of whole answers of the search's front.
    """
    figure, axes = new_figure()
    colours = (DENSE, PLAN, *COLOURS[1:])
    drawn = [row for row in rows if row.decoder_flops_ratio is not None]
    if front:
        shares, losses = zip(*sorted(front, key=lambda point: point[0]), strict=True)
        axes.plot(shares, [1 - one.value for one in losses], color=DENSE, linewidth=1.2, label="search's front")
    bottom = max(0.0, min(row.agreement.low for row in drawn) - 0.08)
    margin = 0.03 * (1 - bottom)
    spans = [(row.decoder_flops_ratio or 0.0, row.agreement.low - margin, row.agreement.high + margin) for row in drawn]
    for i, (row, place) in enumerate(zip(drawn, side_by_side(spans), strict=True)):
        kept = row.agreement
        axes.errorbar(
            place, kept.value, yerr=[[kept.value - kept.low], [kept.high - kept.value]], fmt=MARKERS[i % len(MARKERS)],
            markersize=6, color=colours[i % len(colours)], capsize=3, zorder=3,
            label="plan" if row.role == "plan" else base_name(row.policy),
        )  # fmt: skip
    for row in rows:
        if row.decoder_flops_ratio is None and row.agreement.value > bottom:
            draw_level(axes, ("dense again" if row.role == "floor" else row.policy, row.agreement.value), DENSE)
    label_axes(axes, "decoder FLOPs, share of dense", "whole answers as dense", share=True, log=False)
    axes.set(xlim=(0, 1.05), ylim=(bottom, 1 + margin))
    add_legend(figure, axes, len(drawn) + bool(front))
    return to_svg(figure)


def side_by_side(spans: Sequence[tuple[float, float, float]], apart: float = 0.034) -> list[float]:
    """Places at which no point hides one before it: its own, or the nearest to it on the right or left.

    Args:
        spans: place, lower and upper end of each.
        apart: how far two must be whose spans meet.
    """
    found: list[float] = []
    for place, low, high in spans:
        met = [at for at, (_, below, above) in zip(found, spans, strict=False) if below < high and low < above]
        steps = (step * side * apart for step in range(len(met) + 1) for side in (1, -1))
        found.append(next(place + step for step in steps if all(abs(place + step - at) >= 0.99 * apart for at in met)))
    return found


def losses_against_cost(
    trials: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, Measured]],
    chosen: tuple[float, float] | None,
    limit: float | None,
    minimised: str,
) -> str:
    """Every candidate that was executed: mean loss over cost, the front with its intervals, and the limit.

    Args:
        trials: (share of dense, mean loss) per candidate.
        front: the same with intervals of those that no other beats in both.
        chosen: the plan's.
        limit: largest loss.
        minimised: what the share is a share of.
    """
    figure, axes = new_figure()
    axes.scatter(*zip(*trials, strict=True), s=14, color=PALE, label="candidate")
    if front:
        shares, losses = zip(*sorted(front, key=lambda point: point[0]), strict=True)
        error = [[one.value - one.low for one in losses], [one.high - one.value for one in losses]]
        axes.errorbar(
            shares, [one.value for one in losses], yerr=error, color=OTHER, marker="o", markersize=4, capsize=2,
            label="front",
        )  # fmt: skip
    if chosen is not None:
        axes.scatter(*chosen, s=70, color=PLAN, marker="s", label="plan", zorder=3)
    if limit is not None:
        draw_level(axes, (f"limit {limit:g}", limit), MARK)
    axes.set(xlabel=f"{minimised}, share of dense", ylabel="mean loss, search samples", xlim=(0, 1.05))
    add_legend(figure, axes, 4)
    return to_svg(figure)
