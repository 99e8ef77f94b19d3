"""What a plan cannot be applied to, refused before anything runs, with the reason and the remedy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from planner.errors import InputError, RuntimeStateError, ScheduleError, UnsupportedModelError
from planner.runtime.imaging.images import PIXELS, brings_images
from planner.runtime.model.adapters import Parts
from planner.runtime.model.cache import past_length, pruned_layers
from planner.schedule import ATTENTION_SCORES, Schedule, Stage

#: Scores made of attention weights.
READS_ATTENTION = ATTENTION_SCORES | {"attention_received"}


def check_schedule(schedule: Schedule, parts: Parts) -> None:
    """Refuse a schedule that does not fit the model.

    Raises:
        ScheduleError: it has another number of layers, fractional layers or counts, does what can only be costed, or
            asks of recurrent layers what only attention can do.
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
    if schedule.cost_only:
        raise ScheduleError(
            f"the schedule {' and '.join(schedule.cost_only)}, which can be costed and not executed",
            "`plan report` says what it costs; attach another policy",
        )
    for stage in schedule.stages:
        _check_recurrent(stage, parts)
        _check_scoring(stage, parts)
    if parts.lenders:
        _check_lenders(schedule, parts)


def _check_recurrent(stage: Stage, parts: Parts) -> None:
    """Refuse what recurrent layers cannot do: their rows do not see others one by one, but what is left of all."""
    within = [layer for layer in parts.recurrent if stage.first <= layer < stage.last]
    name = f"{parts.model.config.model_type}: recurrent layers ({', '.join(map(str, within))})"
    if within and stage.visual_attention == "prefix":
        raise ScheduleError(
            f"{name} cannot let visual tokens see the text before them and no other (visual_attention 'prefix')",
            "Use visual_attention 'self' with text_to_visual 'none' there, such as "
            "visipruner:visual_attention=self, or keep that stage to other layers",
        )
    if within and stage.isolated != (stage.text_to_visual == "none"):
        raise ScheduleError(
            f"{name} cannot run visual_attention '{stage.visual_attention}' with text_to_visual "
            f"'{stage.text_to_visual}': where visual tokens run alone the text goes on without them",
            "Use 'self' (or 'skip') with 'none', or 'full' with 'full' there",
        )


def _check_lenders(schedule: Schedule, parts: Parts) -> None:
    """Refuse visual rows beside the main stream where layers lend or borrow keys and values, and loans that are gone.

    A layer that borrows attends to the lender's keys of the rows that are left, and decodes over those in its cache.
    """
    own, lending = min(parts.lenders), sorted(set(parts.lenders.values()))
    for stage in schedule.stages:
        if stage.isolated and any(
            stage.first <= layer < stage.last for pair in parts.lenders.items() for layer in pair
        ):
            raise ScheduleError(
                f"layers {own} and above read keys and values of layers {', '.join(map(str, lending))}, and in "
                f"none of these visual tokens can run alone (visual_attention '{stage.visual_attention}')",
                f"Let that stage end before layer {lending[0]}",
            )
        if any(select.probe for select in stage.selects) and stage.last in parts.lenders:
            raise ScheduleError(
                f"layer {stage.last} has no keys of its own that could be probed", "Rank after it, without probe"
            )
    for layer, lender in parts.lenders.items():
        if schedule.stage_of(lender).cache_visual == "none" and schedule.stage_of(layer).cache_visual != "none":
            raise ScheduleError(
                f"layer {layer} decodes over visual tokens in the cache of layer {lender}, which keeps none "
                "(cache_visual 'none')",
                f"Use cache_visual 'kept' in the stage of layer {lender}",
            )


def _check_scoring(stage: Stage, parts: Parts) -> None:
    """Refuse to rank by the attention of layers that have none, or whose last row may not see the image."""
    for select in stage.selects:
        layer = int(stage.last) - (not select.probe)
        if select.rank_by not in READS_ATTENTION or (layer in parts.attentions and layer not in parts.chunked):
            continue
        why = (
            "attends in chunks, which hide the image from what comes later"
            if layer in parts.chunked
            else "is recurrent"
        )
        able = [str(other) for other in parts.attentions if other not in parts.chunked]
        raise ScheduleError(
            f"layer {layer} would rank by its attention ('{select.rank_by}'), and it {why}",
            f"Rank after a layer with {'full ' if parts.chunked else ''}attention: {', '.join(able)}",
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
    if pruned_layers(cache):
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
    config: Any = next(iter(parts.attentions.values())).config
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


def check_length(length: int, parts: Parts) -> None:
    """Refuse a prompt that is too long for a plan to be exact.

    Args:
        length: of the prompt, padding included.
        parts: the model.

    Raises:
        RuntimeStateError: the model would scale queries by places that a plan has changed.
    """
    if parts.shorter_than is not None and length >= parts.shorter_than:
        raise RuntimeStateError(
            f"the prompt has {length} tokens, and under a plan {parts.model.config.model_type} takes prompts shorter "
            f"than {parts.shorter_than} tokens: beyond, it scales queries by their place among the rows of a layer",
            "Shorten the prompt, or detach the plan",
        )


def check_fixed_shapes(parts: Parts) -> None:
    """Refuse to compile prompts of padded lengths where that is not known to be right.

    Raises:
        UnsupportedModelError: the model has recurrent layers, or some that read the keys of others.
    """
    why = "recurrent layers, through which padding would pass" if parts.recurrent else ""
    why = "layers that read keys and values of others" if parts.lenders else why
    if why:
        raise UnsupportedModelError(
            f"prompts of {parts.model.config.model_type} cannot be compiled: it has {why}", "Run them uncompiled"
        )


def check_mode(model: Any) -> None:
    """Refuse training mode.

    Raises:
        RuntimeStateError: the model is in training mode.
    """
    if model.training:
        raise RuntimeStateError("plans are for inference, and the model is in training mode", "Call model.eval() first")
