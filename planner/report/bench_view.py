"""Measured times and memory, dense and planned, beside two predictions: as a table or JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from planner.cost import Cost
from planner.cost.fit import predicted_ms
from planner.cost.hardware import Hardware
from planner.cost.roofline import latency
from planner.report.tables import layer_runs

if TYPE_CHECKING:
    from planner.runtime.bench import BenchResult

#: Row of the table -> attribute of a `Measurement`.
FIGURES = {
    "prefill ms": "prefill_ms",
    "decoder prefill ms": "decoder_prefill_ms",
    "decode ms per token": "decode_ms",
    "KV cache bytes": "kv_cache_bytes",
    "peak memory bytes": "peak_memory_bytes",
}


def predicted_by_flops(dense: Cost, planned: Cost) -> dict[str, float]:
    """Planned over dense: FLOPs, and the cache's bytes."""
    return {
        "prefill ms": planned.prefill_flops / dense.prefill_flops,
        "decoder prefill ms": _decoder_flops(planned) / _decoder_flops(dense),
        "decode ms per token": planned.decode_flops_per_token / dense.decode_flops_per_token,
        "KV cache bytes": planned.kv_cache_bytes / dense.kv_cache_bytes,
    }


def predicted_by_roofline(dense: Cost, planned: Cost, row: Hardware) -> dict[str, float]:
    """Planned over dense: the time of every layer at the rows it runs, for which it reads all its weights."""
    before, after = latency(dense, row), latency(planned, row)
    return {
        "prefill ms": after.prefill_ms / before.prefill_ms,
        "decoder prefill ms": predicted_ms(planned, "decoder", row) / predicted_ms(dense, "decoder", row),
        "decode ms per token": after.decode_ms / before.decode_ms,
    }


def render(result: BenchResult, costs: tuple[Cost, Cost], row: Hardware | None, fmt: str) -> str:
    """``table``, ``md`` or ``json``.

    Args:
        costs: dense and planned, under `causal`.
        row: the device of the second prediction; None leaves it out.
    """
    by_flops = predicted_by_flops(*costs)
    by_roofline = predicted_by_roofline(*costs, row) if row is not None else {}
    if fmt == "json":
        predicted = {"flops": by_flops, "flops_and_bytes": by_roofline}
        hardware = None if row is None else row.model_dump(mode="json")
        found = {"measured": dataclasses.asdict(result), "predicted_ratio": predicted, "hardware": hardware}
        return json.dumps(found, indent=2) + "\n"
    from tabulate import tabulate

    table = []
    for name, attribute in FIGURES.items():
        dense, planned = getattr(result.dense, attribute), getattr(result.planned, attribute)
        digits = ",.2f" if name.endswith(("ms", "token")) else ","
        table.append(
            [
                name,
                "" if dense is None else format(dense, digits),
                "" if planned is None else format(planned, digits),
                "" if not dense or planned is None else f"{planned / dense:.3f}",
                f"{by_flops[name]:.3f}" if name in by_flops else "",
                f"{by_roofline[name]:.3f}" if name in by_roofline else "",
            ]
        )
    headers = ["", "dense", "planned", "ratio", "by FLOPs", "by FLOPs and bytes"]
    style = "github" if fmt == "md" else "simple"
    parts = [
        f"{result.device}, {result.dtype}, {result.threads} threads, torch {result.torch_version}, "
        f"transformers {result.transformers_version}; batch {result.batch}, {result.prompt_tokens} prompt tokens, "
        f"{result.rounds} rounds in turns, medians",
        tabulate(table, headers, tablefmt=style, disable_numparse=True, colalign=["left"] + ["right"] * 5),
        *([_constants(row)] if row is not None else []),
    ]
    if result.report is not None:
        parts.append(f"visual tokens per layer: {layer_runs(layer[0] for layer in result.report.visual)}")
    return "\n\n".join(parts) + "\n"


def _constants(row: Hardware) -> str:
    """What the second prediction assumes of the device."""
    found = row.measured
    if found is None:
        return f"By FLOPs and bytes: {row.name}, constants of the engine hf."
    return (
        f"By FLOPs and bytes: {row.peak_tflops * found.matmul:.4g} TFLOP/s in matrix products, "
        f"{row.bandwidth_gbs * found.memory:.4g} GB/s, {found.layer_us:.0f} us a layer ({row.source})."
    )


def _decoder_flops(of: Cost) -> float:
    return float(of.prefill_flops - of.prefill["vision"] - of.prefill["projector"])
