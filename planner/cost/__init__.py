"""The cost of a schedule: FLOPs, KV-cache bytes and a latency estimate. Needs NumPy for sweeps only.

The package is callable, as its function `cost` is, so that ``planner.cost`` is one thing however it was imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from planner.cost.conventions import CONVENTIONS, Convention
from planner.cost.flops import COMPONENTS, Cost, cost

if TYPE_CHECKING:
    from planner.cost.roofline import latency
    from planner.cost.sweeping import sweep

__all__ = ["COMPONENTS", "CONVENTIONS", "Convention", "Cost", "cost", "latency", "sweep"]

_LAZY = {"latency": "planner.cost.roofline", "sweep": "planner.cost.sweeping"}


def __getattr__(name: str) -> Any:
    # A report needs neither NumPy nor hardware rows: they load when asked for.
    if name not in _LAZY:
        raise AttributeError(f"module 'planner.cost' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Cost:
        """See `planner.cost.flops.cost`."""
        return cost(*args, **options)


sys.modules[__name__].__class__ = _Callable
