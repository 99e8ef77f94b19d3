"""Calibrate a vision-language model, freeze a token-pruning plan, run it on unmodified transformers models.

    from planner import load_plan

    plan = load_plan("plan.json")
    with plan.apply(model):
        model.generate(**inputs)

Names are imported on first use, so that `import planner` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.cost import cost
    from planner.errors import PlannerError
    from planner.plan import Plan, load_plan
    from planner.profile import Profile
    from planner.schedule import Schedule
    from planner.spec import ModelSpec
    from planner.workload import Workload

_HOME = {
    "ModelSpec": "planner.spec",
    "Plan": "planner.plan",
    "PlannerError": "planner.errors",
    "Profile": "planner.profile",
    "Schedule": "planner.schedule",
    "Workload": "planner.workload",
    "cost": "planner.cost",
    "load_plan": "planner.plan",
}

__all__ = ["ModelSpec", "Plan", "PlannerError", "Profile", "Schedule", "Workload", "cost", "load_plan"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
