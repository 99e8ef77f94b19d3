"""What policies read off a profile when they propose candidates: budgets, and how far masking curves let a rule reach.

A curve is executed on few samples, so a point speaks against a layer only where the upper end of its interval is below
`PLAUSIBLE`. The search measures what is proposed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.profile import Profile

#: Agreement with the dense model that a point of a curve must not be shown to be below.
PLAUSIBLE = 0.95
#: Shares of the visual tokens worth trying.
BUDGETS = (0.02, 0.03, 0.045, 0.06, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7)


def budgets(profile: Profile) -> list[float]:
    """`BUDGETS`, ascending: whole numbers of tokens where all prompts of the profile have equally many, else shares
    (`planner.policies.base.keep_of`)."""
    lengths = profile.probes["prompt"].values["visual"]
    if lengths["least"] != lengths["most"]:
        return list(BUDGETS)
    return sorted({max(1, round(share * lengths["most"])) for share in BUDGETS})


def proposing(profile: Profile, curve: str) -> dict[str, Any] | None:
    """A masking curve of a profile, None where it was not measured."""
    masking = profile.probes.get("masking")
    found: dict[str, Any] | None = None if masking is None else masking.values.get(curve)
    return found


def deepest(points: dict[str, Any], plausible: float = PLAUSIBLE) -> int:
    """The largest k up to which a ``*_before`` curve stays plausible; 0 if it never is."""
    found = 0
    for k, agreement in zip(points["k"], points["agreement"], strict=True):
        if agreement["high"] < plausible:
            break
        found = int(k)
    return found


def earliest(points: dict[str, Any], layers: int, plausible: float = PLAUSIBLE) -> int:
    """The smallest k from which on a ``*_from`` curve stays plausible; `layers` if it never does."""
    found = layers
    for k, agreement in sorted(zip(points["k"], points["agreement"], strict=True), key=lambda pair: -pair[0]):
        if agreement["high"] < plausible:
            break
        found = int(k)
    return found
