"""Visual attention redistribution (VAR): weight moves from visual sink tokens to the other visual tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planner.runtime.model.attention import Call
from planner.runtime.model.cache import PrunedLayer
from planner.runtime.selection.scores import Scored
from planner.runtime.tensors.rows import Rows
from planner.runtime.tensors.weights import attention_weights, sink_value, weighted_values
from planner.schedule import Redistribute


def redistribute(weights: Tensor, sinks: Tensor, visual: Tensor, rule: Redistribute) -> Tensor:
    """Edited attention weights; rows still sum to what they summed to.

    In an image-centric head (visual attention at least `min_visual`, its non-sink share at least `rho`) a share `p`
    of the weight on sink tokens goes to the visual non-sink tokens in proportion to their weights. Other heads stay
    as they are.

    Args:
        weights: ``[B, H, R, n]``.
        sinks, visual: ``[B, n]`` bool; sinks are visual.
        rule: the parameters, in the paper's meaning (its released code uses 1 - rho and 1 - p).
    """
    others = (visual & ~sinks)[:, None, None, :]
    on_sinks = (weights * sinks[:, None, None, :]).sum(-1, keepdim=True)
    on_others = (weights * others).sum(-1, keepdim=True)
    on_image = on_sinks + on_others
    centric = (on_image >= rule.min_visual) & (on_others >= rule.rho * on_image) & (on_others > 0)
    moved = torch.where(centric, rule.p * on_sinks, torch.zeros_like(on_sinks))
    lost = moved / on_sinks.clamp(min=torch.finfo(weights.dtype).tiny)
    gained = moved / on_others.clamp(min=torch.finfo(weights.dtype).tiny)
    return weights * (1 - lost * sinks[:, None, None, :] + gained * others)


def redistribute_rows(scored: Scored, asking: Rows, rule: Redistribute) -> tuple[Tensor, Tensor]:
    """The attention output of a prompt with edited weights in the asking rows, the others as the kernel gave them.

    Args:
        scored: the layer's attention; its output is there.
        asking: query rows: the text after the image.

    Returns:
        The output ``[B, q, H, dh]``, and which keys are visual sinks, ``[B, k]``.
    """
    output, keys = scored.output, scored.keys
    assert output is not None
    visual = keys.pick(scored.layout.visual)
    is_sink = sink_value(scored.hidden, rule.sink_dims) >= rule.tau
    sinks = is_sink.gather(1, scored.hidden_rows.slots_of(keys)) & visual
    slots = scored.queries.slots_of(asking)
    edited = weighted_values(redistribute(scored.weights(slots), sinks, visual, rule), scored.call.value)
    edited = edited.to(output.dtype)
    # Empty slots write to a row of their own, which is cut off.
    wide = torch.cat([output, output[:, :1]], dim=1)
    target = torch.where(asking.filled, slots, output.shape[1])[..., None, None].expand_as(edited)
    return wide.scatter(1, target, edited)[:, :-1], sinks


def redistribute_step(call: Call, rule: Redistribute, cache: PrunedLayer, output: Tensor) -> Tensor:
    """The attention output of a decode step with edited weights: every row of it is text after the image."""
    if cache.sinks is None or cache.visual is None or cache.index is None:
        return output
    held, filled = cache.index.clamp(min=0), cache.index >= 0
    tail = (0, call.key.shape[2] - held.shape[1])
    sinks, visual = (
        nn.functional.pad(flags.to(held.device).gather(1, held) & filled, tail) for flags in (cache.sinks, cache.visual)
    )
    weights = attention_weights(call.query, call.key, call.mask, call.scaling, call.softcap)
    return weighted_values(redistribute(weights, sinks, visual, rule), call.value).to(output.dtype)
