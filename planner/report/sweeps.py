"""Sweeps for a spreadsheet: every combination of a policy's parameters, one line each.

A sweep is spelled like a policy with ranges: ``visipruner:filter=2..12,keep=5/10/20,exit=20..30``; both ends belong
to a range, and a step follows a second ``..``.
"""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

from planner.errors import InputError
from planner.report.targets import Target
from planner.text import csv_text
from planner.workload import Workload

#: More lines than this are a mistake in a range.
LARGEST = 5_000_000


def sweep_csv(target: Target, workload: Workload, spelled: str, convention: str, hardware: Any = None) -> str:
    """CSV of a sweep: parameters, FLOPs, bytes, ratios to dense, and with hardware estimated times.

    Raises:
        InputError: a range that cannot be read, or more combinations than make sense.
    """
    import numpy as np

    from planner.cost import cost, sweep
    from planner.schedule import dense

    policy, axes = parse_sweep(spelled)
    size = 1
    for values in axes.values():
        size *= len(values)
    if size > LARGEST:
        raise InputError(f"the sweep has {size:,} combinations", f"Keep it below {LARGEST:,}")
    grid = np.meshgrid(*axes.values(), indexing="ij") if axes else []
    arrays = {name: values.ravel() for name, values in zip(axes, grid, strict=True)}
    found = sweep(target.spec, workload, policy, convention, hardware, **arrays)
    whole = cost(target.spec, workload, dense(target.spec.layers), convention)
    columns: dict[str, Any] = {
        **found.parameters,
        "prefill_flops": found.prefill_flops,
        "prefill_ratio": found.prefill_flops / whole.prefill_flops,
        "visual_attention_ratio": found.visual_attention / (whole.visual_attention or 1),
        "decode_flops_per_token": found.decode_flops_per_token,
        "kv_cache_bytes": found.kv_cache_bytes,
    }
    if found.prefill_ms is not None:
        columns |= {"estimated_prefill_ms": found.prefill_ms, "estimated_decode_ms": found.decode_ms}
    text = io.StringIO()
    text.write(",".join(["policy", *columns]) + "\n")
    for line in zip(*(values.tolist() for values in columns.values()), strict=True):
        text.write(f"{csv_text(policy)},{','.join(map(str, line))}\n")
    return text.getvalue()


def parse_sweep(spelled: str) -> tuple[str, dict[str, list[float]]]:
    """Policy and the values of each parameter.

    Raises:
        InputError: something is not ``key=values``.
    """
    policy, _, rest = spelled.partition(":")
    axes: dict[str, list[float]] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, values = pair.partition("=")
        if not equals or not values:
            raise InputError(f"sweep: '{pair}' is not key=values", "Write it like filter=2..12 or keep=5/10/20")
        axes[key] = [value for part in values.split("/") for value in _range(key, part)]
    return policy, axes


def _range(key: str, text: str) -> list[float]:
    try:
        bounds = [float(part) for part in text.split("..")]
    except ValueError:
        raise InputError(
            f"sweep: {key}={text} is not a number or a range", "Write it like 2..12 or 0.1..0.9..0.1"
        ) from None
    if len(bounds) == 1:
        return [_number(bounds[0])]
    first, last, step = (*bounds, 1.0)[:3]
    if len(bounds) > 3 or step <= 0 or not all(a <= b for a, b in pairwise(bounds[:2])):
        raise InputError(f"sweep: {key}={text} is not a rising range", "Write it like 2..12 or 0.1..0.9..0.1")
    count = min(int((last - first) / step + 1e-9) + 1, LARGEST + 1)
    return [_number(round(first + index * step, 12)) for index in range(count)]


def _number(value: float) -> float:
    return int(value) if value.is_integer() else value
