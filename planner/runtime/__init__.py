"""The runtime: an unmodified transformers model executes a `planner.schedule.Schedule`, and shows its attention."""

from planner.runtime.attach import Handle, attach
from planner.runtime.fixed import fix
from planner.runtime.image_cache import ImageCache
from planner.runtime.image_stream import ImageStream
from planner.runtime.report import Report
from planner.runtime.signals import LayerView, observe
from planner.runtime.weights import Influence

__all__ = ["Handle", "ImageCache", "ImageStream", "Influence", "LayerView", "Report", "attach", "fix", "observe"]
