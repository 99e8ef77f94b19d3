"""Cost tables and sweeps as one HTML page: sentences, the cells of the tables, and pictures; no script, no request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from planner.cost import COMPONENTS, CONVENTIONS
from planner.cost.machine import CLASSES
from planner.report import cost_charts, glossary
from planner.report.costs import COST_COLUMNS, assumed, columns, components, title
from planner.report.section import Picture, Section, Table
from planner.report.sweeps import Front
from planner.report.templates import render_page

#: Decimal multiples, for axes.
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1.0, ""))
#: Classes of operations as pictures name them, where their own name is long.
_CALLED = {
    "attention_projections": "projections", "attention_scores": "scores", "ffn": "feed-forward", "lm_head": "head",
}  # fmt: skip


def page(reports: Sequence[dict[str, Any]]) -> str:
    """Reports of `planner.report.costs.report` as HTML text: what policies cost on each model."""
    return _rendered([_costs(found) for found in reports])


def sweep_page(fronts: Sequence[Front]) -> str:
    """Sweeps as HTML text: all settings, and those that no other setting beats."""
    return _rendered([_sweep(front) for front in fronts])


def _rendered(sections: Sequence[Section]) -> str:
    from planner import __version__

    words = glossary.explained(glossary.COSTS)
    return render_page("costs.html.jinja", sections=sections, words=words, version=__version__)


def _costs(found: dict[str, Any]) -> Section:
    headers, cells = columns(found)
    tables = [Table("Cost", headers[:COST_COLUMNS], [row[:COST_COLUMNS] for row in cells])]
    estimated = len(headers) > COST_COLUMNS
    if estimated:
        rest = [[row[0], *row[COST_COLUMNS:]] for row in cells]
        tables.append(Table("Time and memory", [headers[0], *headers[COST_COLUMNS:]], rest))
    tables.append(Table("By component", *components(found)))
    return Section(
        name=found["model"],
        title=found["model"],
        about=assumed(found) if estimated else "",
        findings=[title(found), *(_said(row) for row in found["rows"][1:])],
        pictures=_pictures(found) + (_estimates(found) if estimated else []),
        tables=tables,
    )


def _said(row: dict[str, Any]) -> str:
    """A policy in a sentence."""
    kept = f"keeps {row['kv_cache_ratio']:.1%} of its KV cache"
    return f"{row['policy']} computes {row['prefill_ratio']:.1%} of the dense prefill and {kept}.".replace("%", " %")


def _pictures(found: dict[str, Any]) -> list[Picture]:
    rows = found["rows"]
    names = cost_charts.short_names([row["policy"] for row in rows])
    tokens = [row["visual_tokens_per_layer"] for row in rows]
    parts = {_called(name): [row["prefill_by_component"][name] for row in rows] for name in COMPONENTS}
    per_layer = CONVENTIONS[found["convention"]].per_layer
    what = "FLOPs of the prefill by component" + (", average layer" if per_layer else ", whole batch")
    return [
        Picture("Visual tokens that each decoder layer computes", partial(cost_charts.staircase, names, tokens)),
        Picture(what, partial(_bars, names, parts, "FLOP")),
    ]


def _estimates(found: dict[str, Any]) -> list[Picture]:
    """Roofline and memory."""
    times = [row["latency_estimate"] for row in found["rows"]]
    names = cost_charts.short_names([row["policy"] for row in found["rows"]])
    device = times[0]["hardware"]
    memory = {
        "weights": [time["weights_bytes"] for time in times],
        "KV cache": [time["kv_cache_bytes"] for time in times],
        "activations": [time["activation_bytes"] for time in times],
    }
    level = ("the device has", times[0]["available_bytes"])
    return [
        Picture(_roofline("the first token", device, times, "prefill_bound"),
                partial(cost_charts.stacked, names, _classes(times, "prefill_ms_by_class"), "ms on the device")),
        Picture(_roofline("each further token", device, times, "decode_bound"),
                partial(cost_charts.stacked, names, _classes(times, "per_token_ms_by_class"), "ms on the device")),
        Picture(f"Memory of {device}, at the end of the answer", partial(_bars, names, memory, "B", level)),
    ]  # fmt: skip


def _roofline(what: str, device: str, times: Sequence[dict[str, Any]], bound: str) -> str:
    """Which operations the device works on, and for how many rows it waits for the host longer than it works."""
    waits = sum(time[bound] == "overhead" for time in times)
    note = f" {waits} of {len(times)} rows take longer: the device waits for the host." if waits else ""
    return f"Roofline estimate of {what} on {device}, by class of operations.{note}"


def _classes(times: Sequence[dict[str, Any]], name: str) -> dict[str, list[float]]:
    """Milliseconds of each class, those that are also components of the FLOPs in their order, hence colour."""
    return {
        _called(key): [time[name].get(key, 0.0) for time in times] for key in dict.fromkeys((*COMPONENTS, *CLASSES))
    }


def _called(name: str) -> str:
    return _CALLED.get(name, name)


def _bars(
    names: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str, level: tuple[str, float] | None = None
) -> str:
    """Stacked bars in the multiple of a unit that the longest bar has."""
    most = max(*(sum(values) for values in zip(*parts.values(), strict=True)), level[1] if level else 0)
    size, letter = next((one for one in _UNITS if most >= one[0]), _UNITS[-1])
    scaled = {name: [value / size for value in values] for name, values in parts.items()}
    marked = (level[0], level[1] / size) if level else None
    return cost_charts.stacked(names, scaled, letter + unit, marked)


def _sweep(front: Front) -> Section:
    caption = (
        "Each point is a setting. The line joins those that no other one beats: fewer FLOPs, and as much attention left"
        " to the picture. What a setting keeps of the answers, calibration measures."
    )
    axes = "prefill FLOPs, of dense", "visual attention, of dense"
    told = "" if len(front.rows) == front.unbeaten else f", {len(front.rows)} of {front.unbeaten:,} settings"
    return Section(
        name=front.request["model"],
        title=f"{front.request['model']}: {front.policy}",
        about=f"Times are roofline estimates for {front.device}, not measurements." if front.device else "",
        findings=[title(front.request), f"{front.settings:,} settings, of which {front.unbeaten:,} are on the front."],
        pictures=[Picture(caption, partial(cost_charts.front, front.points, front.line, *axes))],
        tables=[Table(f"The front{told}", front.headers, front.rows)],
    )
