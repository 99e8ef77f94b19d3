"""vLLM's model classes under the plan that is asked for, by the names that checkpoints give them.

They are made when vLLM looks for them here, so that its own are imported only where one is served.
"""

from __future__ import annotations

import functools
import importlib
import os

from planner.vllm_plugin import VARIABLE
from planner.vllm_plugin.architectures import ARCHITECTURES
from planner.vllm_plugin.axes import PlannedAxes
from planner.vllm_plugin.carried import carried
from planner.vllm_plugin.planned import PlannedModel
from planner.vllm_plugin.processing import planned_factories


@functools.cache
def __getattr__(name: str) -> type:
    plan = carried(os.environ[VARIABLE]) if name in ARCHITECTURES and VARIABLE in os.environ else None
    if plan is None:
        raise AttributeError(name)
    architecture = ARCHITECTURES[name]
    family = getattr(importlib.import_module(architecture.module), architecture.name or name)
    mixin = PlannedAxes if architecture.axes else PlannedModel
    factories = planned_factories(family._processor_factory, plan)
    return type(name, (mixin, family), {"plan": plan, "_processor_factory": factories, "__module__": __name__})
