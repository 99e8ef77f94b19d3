"""What masking curves say of the layers that influence suggests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.profile import ProbeResult


def at(points: Mapping[str, Any], k: int) -> dict[str, Any] | None:
    """The agreement at a layer: where a bisected curve did not measure, that of the measured point before, since the
    curve changes at measured points alone. None before the first point."""
    known = [agreement for place, agreement in zip(points["k"], points["agreement"], strict=True) if place <= k]
    inside = bool(points["k"]) and k <= points["k"][-1]
    return known[-1] if known and inside else None


#: What influence suggests, the curves that speak about it, best first, and how that reads.
_CHECKS = (
    ("filter", ("prefix_before", "alone_before"), "hiding the image before"),
    ("exit", ("masked_from",), "dropping it from"),
)


def checked_by(curves: Mapping[str, Any], key: str) -> str | None:
    """The curve that a suggested ``filter`` or ``exit`` layer is judged by; None where none was measured."""
    wanted = next(names for name, names, _ in _CHECKS if name == key)
    return next((name for name in wanted if name in curves), None)


def contradictions(masking: ProbeResult, influence: ProbeResult, limit: float) -> list[str]:
    """Filter and exit layers suggested by influence that the curves contradict, one sentence each.

    A layer is contradicted when even the upper end of the curve's interval there lies below the limit.
    """
    found = []
    for key, _, what in _CHECKS:
        curve = checked_by(masking.values, key)
        if curve is None:
            continue
        shares: dict[int, list[str]] = {}
        for level, stage in influence.values.get("suggested", {}).items():
            shares.setdefault(stage[key], []).append(level)
        for layer, levels in shares.items():
            agreement = at(masking.values[curve], layer)
            if agreement is not None and agreement["high"] < limit:
                found.append(
                    f"influence suggests {key} layer {layer} for a share of {' or '.join(levels)} of the samples, but "
                    f"{what} layer {layer} keeps only {agreement['value']:.3f} of the dense model's answers"
                )
    return found
