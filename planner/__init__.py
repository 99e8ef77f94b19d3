"""Calibrate a vision-language model, freeze a token-pruning plan, run it on unmodified transformers models.

    from planner import VisiPruner, load_plan

    plan = load_plan("plan.json")
    with plan.apply(model):
        model.generate(**inputs)

    with VisiPruner(filter=8, keep=10, exit=24).apply(model):  # without a plan: nothing says what it keeps
        model.generate(**inputs)

Names are imported on first use, so that `import planner` costs nothing; torch comes with what runs a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.cost import cost
    from planner.errors import PlannerError
    from planner.plan import Plan, load_plan
    from planner.policies import (
        EVS,
        VAR,
        VTW,
        Blind,
        CDPruner,
        Composition,
        Context,
        Dart,
        Dense,
        Diverse,
        Evict,
        FastV,
        FitPrune,
        Generated,
        HiRED,
        Policy,
        Pool,
        PreLLM,
        PyramidDrop,
        Random,
        Resize,
        ShortV,
        SparseVLM,
        ToMe,
        VidCom2,
        VisiPruner,
        VisPruner,
        parse,
    )
    from planner.profile import Profile
    from planner.runtime import ImageCache, ImageStream
    from planner.runtime.attach import attach
    from planner.schedule import Schedule
    from planner.spec import ModelSpec
    from planner.workload import Workload

    __version__: str

#: Where each public name lives; nothing else is public.
_HOME = {
    "EVS": "planner.policies",
    "VidCom2": "planner.policies",
    "Blind": "planner.policies",
    "CDPruner": "planner.policies",
    "Composition": "planner.policies",
    "Context": "planner.policies",
    "Dart": "planner.policies",
    "Dense": "planner.policies",
    "Diverse": "planner.policies",
    "Evict": "planner.policies",
    "FastV": "planner.policies",
    "FitPrune": "planner.policies",
    "Generated": "planner.policies",
    "HiRED": "planner.policies",
    "ImageCache": "planner.runtime",
    "ImageStream": "planner.runtime",
    "ModelSpec": "planner.spec",
    "Plan": "planner.plan",
    "PlannerError": "planner.errors",
    "Policy": "planner.policies",
    "Pool": "planner.policies",
    "PreLLM": "planner.policies",
    "Profile": "planner.profile",
    "PyramidDrop": "planner.policies",
    "Random": "planner.policies",
    "Resize": "planner.policies",
    "Schedule": "planner.schedule",
    "ShortV": "planner.policies",
    "SparseVLM": "planner.policies",
    "ToMe": "planner.policies",
    "VAR": "planner.policies",
    "VTW": "planner.policies",
    "VisPruner": "planner.policies",
    "VisiPruner": "planner.policies",
    "Workload": "planner.workload",
    "attach": "planner.runtime",
    "cost": "planner.cost",
    "load_plan": "planner.plan",
    "parse": "planner.policies",
}

__all__ = [
    "EVS",
    "VAR",
    "VTW",
    "Blind",
    "CDPruner",
    "Composition",
    "Context",
    "Dart",
    "Dense",
    "Diverse",
    "Evict",
    "FastV",
    "FitPrune",
    "Generated",
    "HiRED",
    "ImageCache",
    "ImageStream",
    "ModelSpec",
    "Plan",
    "PlannerError",
    "Policy",
    "Pool",
    "PreLLM",
    "Profile",
    "PyramidDrop",
    "Random",
    "Resize",
    "Schedule",
    "ShortV",
    "SparseVLM",
    "ToMe",
    "VidCom2",
    "VisPruner",
    "VisiPruner",
    "Workload",
    "__version__",
    "attach",
    "cost",
    "load_plan",
    "parse",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("vlm-planner")
    if name not in _HOME:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
