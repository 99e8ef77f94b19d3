"""What a plan cannot be applied to, refused before anything runs, with the reason and the remedy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from planner.errors import InputError, RuntimeStateError, ScheduleError
from planner.runtime.imaging.images import PIXELS, brings_images
from planner.runtime.model.adapters import Parts
from planner.runtime.model.cache import PrunedLayer, past_length
from planner.schedule import Schedule


def check_schedule(schedule: Schedule, parts: Parts) -> None:
    """Refuse a schedule that does not fit the model.

    Raises:
        ScheduleError: it has another number of layers, or fractional layers or counts.
    """
    if schedule.layers != len(parts.layers):
        raise ScheduleError(
            f"the schedule has {schedule.layers} layers, the model has {len(parts.layers)}",
            "Export a plan for this model, or calibrate it",
        )
    if not schedule.executable:
        raise ScheduleError(
            "the schedule has fractional layer bounds or counts, which belong to a paper's accounting",
            "Round them to whole numbers to run it",
        )


def check_prompt(kwargs: dict[str, Any], past: int) -> None:
    """Refuse a forward that would silently run without the plan.

    Args:
        kwargs: the model's arguments.
        past: logical length of the cache.

    Raises:
        RuntimeStateError: visual tokens cannot be found, or the prompt arrives in chunks.
    """
    ids = kwargs.get("input_ids")
    if ids is None and past == 0:
        raise RuntimeStateError(
            "with a plan attached, a prompt needs input_ids: visual tokens cannot be told from embeddings",
            "Pass input_ids, or detach the plan",
        )
    cache = kwargs.get("past_key_values")
    if past == 0 and getattr(cache, "is_compileable", False):
        raise RuntimeStateError(
            f"a plan cannot shrink a {type(cache).__name__}, whose shapes are fixed before the prompt is known",
            "Leave cache_implementation unset; to decode over fixed shapes, use planner.runtime.fix after the prompt",
        )
    mask = kwargs.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise RuntimeStateError(
            "with a plan attached, attention_mask must be two-dimensional (padding)",
            "Pass the tokenizer's attention mask; the model builds the rest",
        )
    if past == 0 and mask is not None and ids is not None and mask.shape[1] != ids.shape[1]:
        raise RuntimeStateError(
            "the prompt arrives in chunks (the attention mask is longer than the input), which a plan cannot prune",
            "Unset prefill_chunk_size",
        )


def check_turn(kwargs: dict[str, Any]) -> bool:
    """Whether an image arrives after the first turn, over a cache that no plan has touched: such a turn runs dense.

    Raises:
        RuntimeStateError: over a cache that holds a pruned prompt.
    """
    cache: Any = kwargs.get("past_key_values")
    if not past_length(cache) or not brings_images(kwargs):
        return False
    if isinstance(cache.layers[0], PrunedLayer):
        raise RuntimeStateError(
            "an image arrived in a later turn, with a KV cache that already holds a pruned prompt",
            "Give all images in the first prompt and no pixel values in later turns, or detach the plan",
        )
    return True


def check_attention(parts: Parts, name: str) -> None:
    """Refuse an attention implementation that was set while the plan is attached, and bypasses it.

    Args:
        name: of the implementation that the plan has put there.

    Raises:
        RuntimeStateError: another one is set.
    """
    config: Any = parts.attentions[0].config
    if config._attn_implementation != name:
        raise RuntimeStateError(
            f"the attention implementation was set to '{config._attn_implementation}' while a plan is attached",
            "Detach the plan, set the implementation, and attach the plan again",
        )


def check_pixels(kwargs: dict[str, Any]) -> None:
    """Refuse pixel values that are not numbers.

    One reduction a prompt, for which the host waits; it waits for the places of the visual tokens anyway.

    Raises:
        InputError: NaN or infinite pixels.
    """
    for name in PIXELS:
        pixels = kwargs.get(name)
        if isinstance(pixels, Tensor) and not bool(pixels.isfinite().all()):
            raise InputError(f"{name} holds NaN or infinite numbers", "Check the image and its preprocessing")


def check_mode(model: Any) -> None:
    """Refuse training mode.

    Raises:
        RuntimeStateError: the model is in training mode.
    """
    if model.training:
        raise RuntimeStateError("plans are for inference, and the model is in training mode", "Call model.eval() first")
