"""What might be planned: what policies propose, and where in a `Window` influence and masking curves point.

Nothing here runs a model. A candidate is a policy; the parts that a window's are made of (shallow rule, filter, budget,
exit) are proposed one by one, and `calibrate.deciding.decide` measures them alone and together.
"""

from __future__ import annotations

from typing import Any

from calibrate.probes.influence import suggest
from calibrate.probes.stats import SampleTable
from planner.errors import ExtensionError
from planner.policies import AnyPolicy, Policy, ShallowRule, Window, usable
from planner.profile import Profile
from planner.spec import ModelSpec

#: Shares of the visual tokens that are tried as budgets, finest last.
BUDGETS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def proposals(profile: Profile, spec: ModelSpec) -> tuple[list[AnyPolicy], list[Window], list[str]]:
    """What all policies propose: single members, spaces to search, and why some policy proposes nothing."""
    members: list[AnyPolicy] = []
    windows: list[Window] = []
    notes = []
    for policy in usable():
        if isinstance(policy, ExtensionError):
            notes.append(f"a policy proposes nothing: {policy.cause}")
            continue
        for found in policy.candidates(profile, spec):
            if isinstance(found, Window):
                windows.append(found)
            else:
                members.append(found)
    return members, windows, notes


def deepest(points: dict[str, Any], limit: float) -> int:
    """The largest k up to which a ``*_before`` curve stays at or above the limit; 0 if it never does."""
    found = 0
    for k, agreement in zip(points["k"], points["agreement"], strict=True):
        if agreement["value"] < limit:
            break
        found = k
    return found


def earliest(points: dict[str, Any], limit: float, layers: int) -> int:
    """The smallest k from which on a ``*_from`` curve stays at or above the limit; `layers` if it never does."""
    found = layers
    for k, agreement in sorted(zip(points["k"], points["agreement"], strict=True), key=lambda pair: -pair[0]):
        if agreement["value"] < limit:
            break
        found = k
    return found


def suggested(profile: Profile, samples: int) -> list[dict[str, int]]:
    """``{"filter", "keep", "exit"}`` as influence suggests them from the first `samples` samples, several times."""
    if "influence" not in profile.probes:
        return []
    prefix = "influence/"
    arrays = {name.removeprefix(prefix): array for name, array in profile.arrays.items() if name.startswith(prefix)}
    table = SampleTable.from_arrays(arrays)
    # The first threshold and the absolute rule are the paper's.
    filters = table.column("filter")[:samples, 0]
    kept, leaves = (table.column(name)[:samples, 0, 0] for name in ("kept", "exit"))
    return list(suggest(filters, kept, leaves, profile.model.layers).values())


def exits(profile: Profile, stages: list[dict[str, int]], limit: float) -> list[int]:
    """Exit layers worth trying, earliest first; the number of layers (no exit) is always last."""
    layers = profile.model.layers
    proposed = {layers, *(stage["exit"] for stage in stages)}
    if "masking" in profile.probes:
        at = earliest(profile.probes["masking"].values["masked_from"], limit, layers)
        proposed |= {at - 1, at, at + 1}
    return sorted(k for k in proposed if 2 <= k <= layers)


def shallows(
    window: Window, profile: Profile, stages: list[dict[str, int]], limit: float
) -> list[tuple[ShallowRule, int]]:
    """Shallow rules with the depth they may reach, deepest first; depth 0 is left out."""
    found: list[tuple[ShallowRule, int]] = []
    masking = profile.probes.get("masking")
    for rule in window.rules:
        if masking is not None and rule.curve in masking.values:
            depths = {deepest(masking.values[rule.curve], limit)}
        else:
            depths = {stage["filter"] for stage in stages}
        found += [(rule, depth) for depth in sorted(depths, reverse=True) if depth > 0]
    return sorted(found, key=lambda pair: -pair[1])


def filters(stages: list[dict[str, int]], exit_layer: int) -> list[int]:
    """Filter layers worth trying without a shallow stage: the first and last, the middle, and influence's."""
    proposed = {0, exit_layer // 2, exit_layer - 2, *(stage["filter"] for stage in stages)}
    return sorted(layer for layer in proposed if 0 <= layer <= exit_layer - 2)


def budgets(profile: Profile, stages: list[dict[str, int]]) -> list[float]:
    """Shares of the visual tokens worth trying: a fixed grid, and influence's budgets."""
    visual = max(profile.prompt.visual_tokens, 1)
    return sorted({*BUDGETS, *(min(1.0, max(stage["keep"], 1) / visual) for stage in stages)})


def member(
    window: Window,
    profile: Profile,
    rule: ShallowRule,
    filter_layer: int,
    keep: float,
    exit_layer: int,
    rank_by: str,
) -> Policy:
    """A candidate. `keep` is a share: a whole number of tokens where all calibration prompts have equally many."""
    lengths = profile.probes["prompt"].values["visual"]
    equal = lengths["least"] == lengths["most"]
    budget = max(1, round(keep * lengths["most"])) if equal or keep >= 1 else keep
    exit_at = exit_layer if exit_layer < profile.model.layers else None
    return window.member(filter_layer, budget, exit_at, rank_by, dict(rule.settings) if filter_layer else {})
