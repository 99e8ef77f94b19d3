"""What a schedule costs: FLOPs, KV-cache bytes and, as a model, latency. NumPy only, and only for sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.cost.conventions import CONVENTIONS, Convention
from planner.cost.flops import COMPONENTS, Cost, cost

if TYPE_CHECKING:
    from planner.cost.latency import latency
    from planner.cost.sweep import sweep

__all__ = ["COMPONENTS", "CONVENTIONS", "Convention", "Cost", "cost", "latency", "sweep"]


def __getattr__(name: str) -> Any:
    # A report needs neither NumPy nor hardware tables: they load when asked for.
    if name in ("latency", "sweep"):
        import importlib

        return getattr(importlib.import_module(f"planner.cost.{name}"), name)
    raise AttributeError(f"module 'planner.cost' has no attribute '{name}'")
