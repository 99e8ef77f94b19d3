"""The runtime: an unmodified transformers model executes a `planner.schedule.Schedule`, and shows its attention.

What users call is one file each: attach (the handle), fixed (compiled decoding), signals (for calibration), bench,
report, count and fvcore_handles (FLOPs that a counter measures). The implementation is in sub-packages, which import
downwards only:

    execution    one forward: execution (what happens when), prefill, decoding, cache_writer, guard, continuation
    selection    which tokens stay: streams (the rows at hand), ranking, scores, select, encoder, redistribute
    imaging      what depends on an image alone: images (telling them apart), stream_lookup, image_stream, image_cache
    model        the model: adapters (its parts), attention (the hook), isolated (rows that run alone), cache
    tensors      without a model: layout (parts of a prompt), rows (ragged sets of rows), masks, weights

Start reading with `execution.execution` and `execution.prefill`.
"""

from planner.runtime.attach import Handle, attach
from planner.runtime.fixed import fix
from planner.runtime.imaging.image_cache import ImageCache
from planner.runtime.imaging.image_stream import ImageStream
from planner.runtime.report import Report
from planner.runtime.signals import LayerView, observe
from planner.runtime.tensors.weights import Influence

__all__ = ["Handle", "ImageCache", "ImageStream", "Influence", "LayerView", "Report", "attach", "fix", "observe"]
