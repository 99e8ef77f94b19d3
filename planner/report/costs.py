"""Cost tables: a model, a workload, policies in rows. The JSON form is a contract; the others show the same figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from planner.cost import COMPONENTS, CONVENTIONS, Cost, cost
from planner.cost.flops import Alone, Head
from planner.report.tables import layer_runs
from planner.report.targets import Target
from planner.report.units import percent, size
from planner.schedule import Schedule, dense
from planner.text import csv_text, printable
from planner.workload import Workload

#: Columns of the main table before those of the estimate.
COST_COLUMNS = 8
WORKLOAD_FIELDS = ("visual_tokens", "text_tokens", "system_tokens", "output_tokens", "batch")


def report(
    target: Target,
    workload: Workload,
    policies: Sequence[tuple[str, Schedule]],
    convention: str = "exact",
    hardware: Any = None,
    head: Head = "last",
    alone: Alone = "fast",
    eager: bool = False,
) -> dict[str, Any]:
    """Figures of a dense model and of policies beside it.

    Args:
        policies: spelling and schedule of each row after the first.
        convention: how FLOPs are counted.
        hardware: a `planner.cost.hardware.Hardware` adds roofline estimates, or None.
        head, alone: as in `cost`.
        eager: attention weights are written out, which takes memory.

    Returns:
        ``model``, ``convention``, ``workload`` and ``rows``, and ``modelled`` where no counter would measure just that;
        the first row is dense. Ratios are to it, 0 to 1.
    """
    spec = target.spec

    def priced(schedule: Schedule, name: str = convention) -> Cost:
        return cost(spec, workload, schedule, name, head, alone)

    schedules = [("dense", dense(spec.layers)), *((name, s) for name, s in policies if name != "dense")]
    costs = [(name, schedule, priced(schedule)) for name, schedule in schedules]
    whole = costs[0][2]
    rows = []
    for name, schedule, found in costs:
        row: dict[str, Any] = {
            "policy": name,
            "prefill_flops": found.prefill_flops,
            "prefill_ratio": _ratio(found.prefill_flops, whole.prefill_flops),
            "prefill_by_component": found.prefill,
            "visual_attention_ratio": _ratio(found.visual_attention, whole.visual_attention),
            "decode_flops_per_token": found.decode_flops_per_token,
            "kv_cache_bytes": found.kv_cache_bytes,
            "kv_cache_ratio": _ratio(found.kv_cache_bytes, whole.kv_cache_bytes),
            "visual_tokens_per_layer": list(found.visual_tokens_per_layer),
        }
        if hardware is not None:
            row["latency_estimate"] = _estimate(priced(schedule, "causal"), hardware, eager)
        rows.append(row)
    return {**request(target, workload, convention), "rows": rows}


def request(target: Target, workload: Workload, convention: str) -> dict[str, Any]:
    """What a report is about: all but its rows."""
    return {
        "model": target.name,
        **({"modelled": True} if target.spec.decoder.modelled else {}),
        "convention": convention,
        "workload": {name: getattr(workload, name) for name in WORKLOAD_FIELDS},
    }


def _ratio(value: float, whole: float) -> float:
    return value / whole if whole else 1.0


def _estimate(found: Cost, hardware: Any, eager: bool) -> dict[str, Any]:
    """Roofline figures, from what a causal kernel executes."""
    from planner.cost import latency

    time = latency(found, hardware, eager)
    return {
        "hardware": time.hardware,
        "devices": hardware.parallel.devices,
        "engine": time.engine,
        "vision_ms": time.vision_ms,
        "time_to_first_token_ms": time.prefill_ms,
        "per_token_ms": time.decode_ms,
        "total_ms": time.total_ms,
        "prefill_ms_by_class": time.prefill_ms_by_class,
        "per_token_ms_by_class": time.decode_ms_by_class,
        "prefill_bound": time.prefill_bound,
        "decode_bound": time.decode_bound,
        "memory_bytes": time.memory.total,
        "weights_bytes": time.memory.weights,
        "kv_cache_bytes": time.memory.kv_cache,
        "activation_bytes": time.memory.activations,
        "available_bytes": time.memory.available,
        "fits": time.memory.fits,
        "largest_batch": time.memory.largest_batch,
    }


# -- renderers --------------------------------------------------------------------------------------------------------


def render(reports: Sequence[dict[str, Any]], fmt: str) -> str:
    """Reports as ``table``, ``md``, ``csv`` or ``json``; JSON of one report is that report, of several a list.
    `planner.report.costs_page` makes HTML."""
    if fmt == "json":
        return json.dumps(reports[0] if len(reports) == 1 else list(reports), indent=2) + "\n"
    if fmt == "csv":
        return _csv(reports)
    return printable("\n\n".join(_text(found, fmt) for found in reports)) + "\n"


def title(found: dict[str, Any]) -> str:
    """The model, its request, and how FLOPs are counted."""
    load, rule = found["workload"], CONVENTIONS[found["convention"]]
    return (
        f"{found['model']}: {load['system_tokens']} + {load['visual_tokens']} visual + {load['text_tokens']} text "
        f"tokens, batch {load['batch']}. Convention {rule.name}: {rule.formula}."
        + (" Modelled: a part of this family's work is not counted as it runs." if found.get("modelled") else "")
    )


def columns(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the main table."""
    per_layer = CONVENTIONS[found["convention"]].per_layer
    headers = [
        "policy",
        "prefill FLOPs a layer" if per_layer else "prefill FLOPs",
        "of dense",
        "visual attention",
        "decode FLOPs/token",
        "KV cache",
        "KV of dense",
        "visual tokens x layers",
    ]
    cells = [
        [
            row["policy"],
            figure(row["prefill_flops"]),
            percent(row["prefill_ratio"], 1),
            percent(row["visual_attention_ratio"], 1),
            figure(row["decode_flops_per_token"]),
            size(row["kv_cache_bytes"]),
            percent(row["kv_cache_ratio"], 1),
            layer_runs(row["visual_tokens_per_layer"]),
        ]
        for row in found["rows"]
    ]
    if "latency_estimate" in found["rows"][0]:
        headers += ["first token ms (est.)", "ms/token (est.)", "bound by", "memory GB", "fits"]
        for row, cell in zip(found["rows"], cells, strict=True):
            time = row["latency_estimate"]
            bounds = f"{time['prefill_bound']}, {time['decode_bound']}"
            cell += [f"{time['time_to_first_token_ms']:.2f}", f"{time['per_token_ms']:.2f}", bounds]
            cell += [f"{time['memory_bytes'] / 1e9:.1f} of {time['available_bytes'] / 1e9:g}", _fits(time)]
    return headers, cells


def components(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the prefill by component; those that are nowhere are left out."""
    used = [name for name in COMPONENTS if any(row["prefill_by_component"][name] for row in found["rows"])]
    cells = [[row["policy"], *(figure(row["prefill_by_component"][name]) for name in used)] for row in found["rows"]]
    return ["prefill by component", *(name.replace("_", " ") for name in used)], cells


def figure(flops: float) -> str:
    """Four significant digits with a unit, for readers; machines take JSON or CSV."""
    for least, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= least:
            return f"{flops / least:.4g} {unit}"
    return f"{flops:,.0f}"


def _text(found: dict[str, Any], fmt: str) -> str:
    from tabulate import tabulate

    style = {"table": "simple", "md": "github"}[fmt]
    parts = [title(found)]
    for headers, cells in (columns(found), components(found)):
        align = ["left", *["right"] * (len(headers) - 1)]
        parts.append(tabulate(cells, headers, tablefmt=style, disable_numparse=True, colalign=align))
    if "latency_estimate" in found["rows"][0]:
        parts.append(assumed(found))
    return "\n\n".join(parts)


def _fits(time: dict[str, Any]) -> str:
    """Whether the request fits, and at which batch."""
    if time["fits"]:
        return f"up to batch {time['largest_batch']:,}"
    most = time["largest_batch"]
    return f"does not fit; batch {most:,} does" if most else "does not fit"


def assumed(found: dict[str, Any]) -> str:
    """What the estimates are of."""
    time = found["rows"][0]["latency_estimate"]
    devices = f"{time['devices']} x " if time["devices"] > 1 else ""
    return (
        f"Times are roofline estimates for {devices}{time['hardware']} and the engine {time['engine']}, not "
        "measurements. Memory is each device's: weights, activations at their peak, KV cache at the end of the answer."
    )


def _csv(reports: Sequence[dict[str, Any]]) -> str:
    flat = []
    for found in reports:
        for row in found["rows"]:
            line: dict[str, Any] = {"model": found["model"], "convention": found["convention"], **found["workload"]}
            line |= {name: value for name, value in row.items() if not isinstance(value, (dict, list))}
            line |= {f"prefill_{name}_flops": row["prefill_by_component"][name] for name in COMPONENTS}
            line["visual_tokens_per_layer"] = " ".join(f"{count:g}" for count in row["visual_tokens_per_layer"])
            time = row.get("latency_estimate", {})
            line |= {f"estimated_{name}": value for name, value in time.items() if not isinstance(value, dict)}
            flat.append({name: csv_text(value) if isinstance(value, str) else value for name, value in line.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
