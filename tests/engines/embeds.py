"""Pictures for a vLLM without the plugin: the client encodes them, and sends the tokens that a plan keeps.

As in `docs/vllm.md`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch

from calibrate.inputs.samples import Sample
from planner import Plan
from planner.runtime.selection.picture import PictureEntry
from tests.engines.asking import Part, Reference


def embedded(reference: Reference, plan: Plan, samples: Sequence[Sample]) -> list[Part]:
    """The picture of each sample as a request has it: a tensor ``[kept, hidden size]``.

    Args:
        reference: the model, a LLaVA with one picture a sample.
        plan: one that selects before the decoder.
    """
    model, decision, found = reference.loaded.model, plan.decision, []
    assert decision.schedule.entry is not None
    entry = PictureEntry(model.config, decision.schedule.entry, decision.seed)
    for sample in samples:
        with torch.inference_mode():
            pixels = reference.encoder([sample])["pixel_values"]
            (features,) = model.get_image_features(pixel_values=pixels).pooler_output
        _, kept = entry.chosen(features, features.shape[1], {})
        buffer = io.BytesIO()
        torch.save(kept.cpu(), buffer)
        found.append({"type": "image_embeds", "image_embeds": base64.b64encode(buffer.getvalue()).decode()})
    return found
