"""Sweeps for a spreadsheet: every combination of a policy's parameters, one line each.

A sweep is spelled like a policy with ranges: ``visipruner:filter=2..12,keep=5/10/20,exit=20..30``; both ends belong
to a range, and its step follows a second ``..``. Without one it is 1 between whole ends, and a range with a fractional
end is ten values at equal distances. Where a parameter is a list itself, ``|`` stands between alternatives:
``sparsevlm:keep=300/200/110|66/30/17``. Compositions are swept over the parameters of all their parts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from planner.errors import InputError, nearest
from planner.policies import AnyPolicy, Composition, Policy, policy_class
from planner.report.costs import figure, request
from planner.report.targets import Target
from planner.text import csv_text
from planner.workload import Workload

if TYPE_CHECKING:
    from planner.cost.sweeping import Sweep

#: More lines than this are a mistake in a range.
MOST_LINES = 5_000_000
#: Values of a range of fractions that states no step.
VALUES_OF_FRACTIONS = 10
#: A page shows at most so many settings: as points, and of the front as lines of a table.
MOST_POINTS, MOST_ROWS = 2_000, 24
#: Values of each parameter.
Axes = Mapping[str, Sequence[Any]]
_WORDS = {"true": True, "false": False}


class Front(NamedTuple):
    """A sweep, as a picture and a table show it.

    Attributes:
        request: as `planner.report.costs.request` has it.
        policy: its name, or those of a composition.
        device: name and engine, where times are estimated.
        settings, unbeaten: how many there are, and how many no other one beats: none has fewer FLOPs and leaves at
            least as much attention to visual tokens.
        points, line: (prefill FLOPs, attention to visual tokens), shares of dense: of settings, of unbeaten ones.
        headers, rows: parameters and figures of unbeaten ones, formatted. Where there are many, every second or third.
    """

    request: dict[str, Any]
    policy: str
    device: str
    settings: int
    unbeaten: int
    points: list[tuple[float, float]]
    line: list[tuple[float, float]]
    headers: list[str]
    rows: list[list[str]]


def sweep_csv(target: Target, workload: Workload, spelled: str, convention: str, hardware: Any = None) -> str:
    """CSV of a sweep: parameters, FLOPs, bytes, ratios to dense, and with hardware estimated times.

    Raises:
        InputError: a range that cannot be read, parameters that do not fit, or more combinations than make sense.
    """
    name, columns = _swept(target, workload, spelled, convention, hardware)
    text = io.StringIO()
    text.write(",".join(["policy", *columns]) + "\n")
    for line in zip(*(_listed(values) for values in columns.values()), strict=True):
        text.write(f"{csv_text(name)},{','.join(map(_cell, line))}\n")
    return text.getvalue()


def sweep_front(target: Target, workload: Workload, spelled: str, convention: str, hardware: Any = None) -> Front:
    """The settings of a sweep that no other one beats; see `sweep_csv`.

    Raises:
        InputError: as there.
    """
    name, columns = _swept(target, workload, spelled, convention, hardware)
    cost, left = (_listed(columns[key]) for key in ("prefill_ratio", "visual_attention_ratio"))
    unbeaten: list[int] = []
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -left[i])):
        if not unbeaten or left[index] > left[unbeaten[-1]]:
            unbeaten.append(index)
    told = unbeaten[:: -(-len(unbeaten) // MOST_ROWS)]
    values = {key: _listed(column) for key, column in columns.items()}
    return Front(
        request=request(target, workload, convention),
        policy=name,
        device="" if hardware is None else f"{hardware.name} and the engine {hardware.engine}",
        settings=len(cost),
        unbeaten=len(unbeaten),
        points=[(cost[i], left[i]) for i in range(0, len(cost), -(-len(cost) // MOST_POINTS))],
        line=[(cost[i], left[i]) for i in unbeaten],
        headers=[key.replace("_", " ") for key in columns],
        rows=[[_shown(key, column[i]) for key, column in values.items()] for i in told],
    )


def _swept(
    target: Target, workload: Workload, spelled: str, convention: str, hardware: Any
) -> tuple[str, dict[str, Any]]:
    """What was swept, and columns with a value for each combination."""
    from planner.cost import cost
    from planner.schedule import dense

    parts = parse_sweep(spelled)
    size = math.prod(len(values) for _, axes in parts for values in axes.values())
    if size > MOST_LINES:
        raise InputError(f"the sweep has {size:,} combinations", f"Keep it below {MOST_LINES:,}")
    name = "+".join(policy.name for policy, _ in parts)
    if len(parts) == 1:
        parameters, found = _one(target, workload, *parts[0], convention, hardware)
    else:
        parameters, found = _composed(target, workload, parts, convention, hardware)
    whole = cost(target.spec, workload, dense(target.spec.layers), convention)
    columns: dict[str, Any] = {
        **parameters,
        "prefill_flops": found.prefill_flops,
        "prefill_ratio": found.prefill_flops / whole.prefill_flops,
        "visual_attention_ratio": found.visual_attention / (whole.visual_attention or 1),
        "decode_flops_per_token": found.decode_flops_per_token,
        "kv_cache_bytes": found.kv_cache_bytes,
    }
    if found.prefill_ms is not None:
        columns |= {"estimated_prefill_ms": found.prefill_ms, "estimated_decode_ms": found.decode_ms}
    return name, columns


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else list(values.tolist())


def _one(
    target: Target, workload: Workload, policy: type[Policy], axes: Axes, convention: str, hardware: Any
) -> tuple[dict[str, Any], Sweep]:
    import numpy as np

    from planner.cost import sweep

    grid = np.meshgrid(*axes.values(), indexing="ij") if axes else []
    arrays: dict[str, Any] = {name: values.ravel() for name, values in zip(axes, grid, strict=True)}
    found = sweep(target.spec, workload, policy, convention, hardware, target.profile, **arrays)
    return dict(found.parameters), found


def _composed(
    target: Target, workload: Workload, parts: Sequence[tuple[type[Policy], Axes]], convention: str, hardware: Any
) -> tuple[dict[str, Any], Sweep]:
    from planner.cost.sweeping import sweep_each

    found = sweep_each(target.spec, workload, _members(parts), convention, hardware, target.profile)
    places = [(place, key) for place, (_, axes) in enumerate(parts) for key in axes]
    lines = list(product(*(parts[place][1][key] for place, key in places)))
    heads = [f"{parts[place][0].name}.{key}" for place, key in places]
    return {head: [line[index] for line in lines] for index, head in enumerate(heads)}, found


def _members(parts: Sequence[tuple[type[Policy], Axes]]) -> Iterator[AnyPolicy]:
    """Compositions in the order of a table: the last parameter changes from line to line."""
    options = [[dict(zip(axes, values, strict=True)) for values in product(*axes.values())] for _, axes in parts]
    for chosen in product(*options):
        yield Composition(tuple(policy.make(values) for (policy, _), values in zip(parts, chosen, strict=True)))


def parse_sweep(spelled: str) -> list[tuple[type[Policy], dict[str, list[Any]]]]:
    """The policies, and the values of each parameter.

    Raises:
        InputError: an unknown policy or parameter, or something that is not ``key=values``.
        ExtensionError: the package that adds a policy is broken.
    """
    return [_parse_part(part.strip()) for part in spelled.split("+")]


def _parse_part(spelled: str) -> tuple[type[Policy], dict[str, list[Any]]]:
    name, _, rest = spelled.partition(":")
    policy = policy_class(name)
    axes: dict[str, list[Any]] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, values = pair.strip().partition("=")
        if not equals or not values:
            raise InputError(f"sweep: '{pair}' is not key=values", "Write it like filter=2..12 or keep=5/10/20")
        if key not in policy.model_fields:
            keys = ", ".join(policy.model_fields) or "none"
            raise InputError(
                f"policy '{name}' has no key '{key}'", f"{nearest(key, policy.model_fields)}Its keys: {keys}"
            )
        if key in axes:
            raise InputError(f"sweep: '{key}' is given twice", "Give it once")
        listed = policy.takes_list(key)
        axes[key] = values.split("|") if listed else [one for part in values.split("/") for one in _values(key, part)]
    return policy, axes


def _values(key: str, text: str) -> list[Any]:
    """A word, a number, or those of a range."""
    if ".." not in text:
        return [_number(text)]
    try:
        bounds = [float(part) for part in text.split("..")]
    except ValueError:
        raise InputError(
            f"sweep: {key}={text} is not a number or a range", "Write it like 2..12 or 0.1..0.9..0.1"
        ) from None
    finite = all(map(math.isfinite, bounds))
    if not finite or not 2 <= len(bounds) <= 3 or bounds[0] > bounds[1] or bounds[-1] <= 0 < len(bounds) - 2:
        raise InputError(f"sweep: {key}={text} is not a rising range", "Write it like 2..12 or 0.1..0.9..0.1")
    first, last = bounds[:2]
    whole = first.is_integer() and last.is_integer()
    step = bounds[2] if len(bounds) == 3 else 1.0 if whole else (last - first) / (VALUES_OF_FRACTIONS - 1)
    if not step:
        return [_whole(first)]
    count = min(int((last - first) / step + 1e-9) + 1, MOST_LINES + 1)
    return [_whole(round(first + index * step, 12)) for index in range(count)]


def _number(text: str) -> Any:
    """A number where it is one; else a word, as ``rank_by=l2/cos`` has them."""
    try:
        return _whole(float(text))
    except ValueError:
        return _WORDS.get(text, text)


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value


def _cell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(name: str, value: Any) -> str:
    """For readers: FLOPs with a unit, other integers whole, fractions to four digits."""
    if "flops" in name:
        return figure(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else _cell(value)
