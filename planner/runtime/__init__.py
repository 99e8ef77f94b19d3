"""The runtime: an unmodified transformers model executes a `planner.schedule.Schedule`, and shows its attention.

Where to start reading: `hooks` says what happens when, `prefill` what one prompt goes through.

    for users       attach (the handle), image_stream, image_cache, fixed (compiled decoding), report, bench
    on the model    adapters (its parts), guard (what is refused), hooks, attention (the seam), generation, continuation
    one prefill     prefill: streams (who runs where), sight (what a layer sees), ranking (what stays), filling (what
                    the caches keep); decoding after it
    selection       scores and select, encoder and encoder_routes (scores of the vision encoder), redistribute
    images          shallow (what depends on the image alone), alone (running it), images (which is which), fingerprint
    tensors         layout (parts of a prompt), rows (ragged sets of rows), masks, cache, weights (attention again)
    for calibration signals; count and fvcore_handles for the FLOPs that a counter sees
"""

from planner.runtime.attach import Handle, attach
from planner.runtime.fixed import fix
from planner.runtime.imaging.image_cache import ImageCache
from planner.runtime.imaging.image_stream import ImageStream
from planner.runtime.report import Report
from planner.runtime.signals import LayerView, observe
from planner.runtime.tensors.weights import Influence

__all__ = ["Handle", "ImageCache", "ImageStream", "Influence", "LayerView", "Report", "attach", "fix", "observe"]
