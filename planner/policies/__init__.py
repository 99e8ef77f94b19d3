"""Token policies: each turns a model's facts and a workload into a schedule.

parse("fastv:k=3,ratio=0.75").schedule(spec)
parse("prellm:keep=0.5+visipruner:filter=8,keep=20,exit=24")
"""

from __future__ import annotations

from planner.errors import InputError
from planner.policies.base import REGISTRY, Policy, nearest
from planner.policies.compose import Composition, overlay
from planner.policies.context import Context
from planner.policies.dense import Dense
from planner.policies.fastv import FastV
from planner.policies.fitprune import FitPrune
from planner.policies.prellm import PreLLM
from planner.policies.pyramiddrop import PyramidDrop
from planner.policies.random import Random
from planner.policies.sparsevlm import SparseVLM
from planner.policies.var import VAR
from planner.policies.visipruner import VisiPruner

__all__ = [
    "VAR",
    "Composition",
    "Context",
    "Dense",
    "FastV",
    "FitPrune",
    "Policy",
    "PreLLM",
    "PyramidDrop",
    "Random",
    "SparseVLM",
    "VisiPruner",
    "names",
    "overlay",
    "parse",
]


def names() -> tuple[str, ...]:
    """Names of all policies, sorted."""
    return tuple(sorted(REGISTRY))


def parse(text: str) -> Policy | Composition:
    """A policy from its spelling, ``name[:key=value,...]``; several joined by ``+``.

    Raises:
        InputError: an unknown name or key (the nearest valid one is named), or a value that makes no sense.
    """
    parts = tuple(_parse_one(part) for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Composition(parts)


def _parse_one(text: str) -> Policy:
    name, _, rest = text.strip().partition(":")
    if name not in REGISTRY:
        raise InputError(f"there is no policy '{name}'", f"{nearest(name, REGISTRY)}Policies: {', '.join(names())}")
    values: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"policy '{name}': '{pair}' is not key=value", f"Write it like {name}:key=value")
        if key in values:
            raise InputError(f"policy '{name}': '{key}' is given twice", "Give it once")
        values[key] = value
    return REGISTRY[name].make(values)
