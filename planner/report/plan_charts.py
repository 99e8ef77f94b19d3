"""Pictures of a plan: its staircase, accuracy against cost, and the candidates that were tried."""

from __future__ import annotations

from collections.abc import Sequence

from planner.evidence import Measured, Row
from planner.plan import Plan
from planner.report.drawing import COLOURS, DENSE, MARK, MARKERS, OTHER, PALE, PLAN, draw_level, new_figure, to_svg

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
    axes.set(xlabel="decoder layer", ylabel="visual tokens", xticks=list(layers)[:: max(1, len(layers) // 16)])
    # Above the picture: bars fill it.
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    return to_svg(figure)


def accuracy_against_cost(rows: Sequence[Row]) -> str:
    """Accuracy (agreement where there are no answers) with its interval, over the share of dense decoder FLOPs; without
    a picture nothing of that is computed, so that this row is a level."""
    figure, axes = new_figure()
    colours = (DENSE, PLAN, *COLOURS[1:])
    answered = rows[0].accuracy is not None
    drawn = [row for row in rows if row.decoder_flops_ratio is not None]
    lows = []
    for i, row in enumerate(drawn):
        share = row.accuracy or row.agreement
        error = [[share.value - share.low], [share.high - share.value]]
        axes.errorbar(
            row.decoder_flops_ratio, share.value, yerr=error, fmt=MARKERS[i % len(MARKERS)], markersize=7,
            color=colours[i % len(colours)], capsize=3, label=row.policy.split(":")[0],
        )  # fmt: skip
        lows.append(share.low)
    bottom = max(0.0, min(lows) - 0.08)
    for row in rows:
        share = row.accuracy or row.agreement
        if row.decoder_flops_ratio is None and share.value > bottom:
            draw_level(axes, ("dense against itself" if row.role == "floor" else row.policy, share.value), DENSE)
    axes.set(
        xlabel="decoder FLOPs, share of dense",
        ylabel="accuracy" if answered else "whole answers as dense",
        xlim=(0, 1.05),
        ylim=(bottom, 1.01),
    )
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(0.97, 0.02))
    return to_svg(figure)


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
    axes.set(xlabel=f"{minimised}, share of dense", ylabel="mean loss on the search samples", xlim=(0, 1.05))
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return to_svg(figure)
