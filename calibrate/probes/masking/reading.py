"""What a masking curve says of a limit. A point is held to be below it when even its interval's upper end is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.profile import ProbeResult


def deepest(points: Mapping[str, Any], limit: float) -> int:
    """The largest measured k up to which a ``*_before`` curve is nowhere below the limit; 0 if it is at once."""
    found = 0
    for k, agreement in zip(points["k"], points["agreement"], strict=True):
        if agreement["high"] < limit:
            break
        found = k
    return found


def earliest(points: Mapping[str, Any], limit: float, layers: int) -> int:
    """The smallest measured k from which on a ``*_from`` curve is nowhere below the limit; `layers` if it always is."""
    found = layers
    for k, agreement in sorted(zip(points["k"], points["agreement"], strict=True), key=lambda pair: -pair[0]):
        if agreement["high"] < limit:
            break
        found = k
    return found


def changes(points: Mapping[str, Any]) -> list[int]:
    """The layers k at which a curve takes another value than at the measured point before: where filters and exits
    are worth telling apart."""
    shares = [agreement["value"] for agreement in points["agreement"]]
    return [k for k, share, before in zip(points["k"][1:], shares[1:], shares, strict=False) if share != before]


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
