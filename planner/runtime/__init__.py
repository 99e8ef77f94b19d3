"""The runtime: an unmodified transformers model executes a `planner.schedule.Schedule`, and shows what it attends to."""

from planner.runtime.attach import Handle, Report, attach
from planner.runtime.signals import LayerView, observe
from planner.runtime.weights import Influence

__all__ = ["Handle", "Influence", "LayerView", "Report", "attach", "observe"]
