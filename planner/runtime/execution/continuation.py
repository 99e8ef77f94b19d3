"""A prompt and tokens that continue it, in one forward.

Assisted decoding sends the prompt together with the first candidate tokens, and scoring an answer sends the prompt
together with the answer. Both ask for the logits of the last ``1 + c`` rows (``logits_to_keep``). A plan ranks by the
last row *of the prompt*, and what follows may only attend to what the cache keeps, so such a forward is run as what
it stands for: the prompt, then its continuation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from planner.runtime.imaging.images import PIXELS

#: Arguments with one entry per token, in their last dimension.
_PER_TOKEN = ("input_ids", "position_ids", "token_type_ids", "mm_token_type_ids", "cache_position")
#: Arguments that belong to the prompt alone.
_OF_PROMPT = (*PIXELS, "mm_encoder_outputs")


def continued(kwargs: dict[str, Any]) -> int:
    """How many tokens after the prompt a forward with a cache holds: ``logits_to_keep - 1`` where that is a number."""
    keep = kwargs.get("logits_to_keep")
    if not isinstance(keep, int) or keep <= 1 or kwargs.get("use_cache") is False:
        return 0
    return keep - 1


def split(kwargs: dict[str, Any], count: int, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for the prompt, and for the `count` tokens after it over the same cache."""
    cache = kwargs.get("past_key_values")
    if cache is None:
        cache = DynamicCache(config=config)
    shared = {**kwargs, "past_key_values": cache, "use_cache": True}
    prompt, rest = {**shared, "logits_to_keep": 1}, {**shared, "logits_to_keep": count}
    for name in _PER_TOKEN:
        if isinstance(kwargs.get(name), Tensor):
            prompt[name], rest[name] = kwargs[name][..., :-count], kwargs[name][..., -count:]
    if isinstance(kwargs.get("attention_mask"), Tensor):
        prompt["attention_mask"] = kwargs["attention_mask"][..., :-count]
    for name in _OF_PROMPT:
        if name in rest:
            rest[name] = None
    return prompt, rest


def join_logits(first: Tensor, output: Any) -> Any:
    """The continuation's output with the prompt's last logits in front."""
    if isinstance(output, tuple):
        return (torch.cat([first, output[0]], dim=1), *output[1:])
    output.logits = torch.cat([first, output.logits], dim=1)
    return output
