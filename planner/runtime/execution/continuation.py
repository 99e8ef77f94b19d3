"""A prompt and tokens that continue it, in one forward.

Scoring an answer sends the prompt together with the answer; so do a loss with labels, assisted decoding with its first
candidate tokens, and generation without a cache at every step. A plan ranks by the last row *of the prompt*, and what
follows may only attend to what the cache keeps. So such a forward is run as what it stands for: the prompt, then its
continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from planner.errors import InputError, RuntimeStateError
from planner.runtime.imaging.images import PIXELS, SOUNDS
from planner.runtime.model.adapters import Parts
from planner.runtime.tensors.layout import visual_rows

#: Arguments with one entry per token, in their last dimension.
_PER_TOKEN = ("input_ids", "position_ids", "token_type_ids", "mm_token_type_ids")
#: Arguments that belong to the prompt alone.
_OF_PROMPT = (*PIXELS, *SOUNDS, "mm_encoder_outputs")
#: Label of a token that is not scored.
_UNSCORED = -100


def prompt_ends(
    kwargs: dict[str, Any], visual_ids: tuple[int, ...], lengths: Sequence[int] | None, generated_from: Tensor | None
) -> list[int] | None:
    """The column after each sample's prompt; None where the forward holds nothing but prompts.

    Args:
        kwargs: the model's arguments, without a past.
        visual_ids: placeholder tokens.
        lengths: tokens of each prompt, padding left out, as the user says.
        generated_from: the prompt that `generate` was called with.

    Raises:
        InputError: lengths or labels that do not fit the tokens.
        RuntimeStateError: the prompt arrives in chunks, or its end cannot be known.
    """
    ids: Tensor = kwargs["input_ids"]
    count, keep, labels = ids.shape[1], kwargs.get("logits_to_keep"), kwargs.get("labels")
    if lengths is not None:
        ends = _from_lengths(ids, kwargs.get("attention_mask"), lengths)
    elif labels is not None:
        scored = labels != _UNSCORED
        ends = torch.where(scored.any(1), scored.int().argmax(1), count).tolist()
    elif generated_from is not None:
        ends = [_from_prompt(count, generated_from.shape[1])] * len(ids)
    elif isinstance(keep, Tensor):
        raise RuntimeStateError(
            "logits_to_keep as a tensor does not say where the prompt ends, by whose last token a plan ranks",
            "Pass a number, or say it: with handle.scoring(prompt_lengths): ...",
        )
    else:
        ends = [count - max(int(keep or 0) - 1, 0)] * len(ids)
    if all(end == count for end in ends):
        return None
    visual = visual_rows(ids, visual_ids)
    within = torch.arange(count, device=ids.device) < torch.tensor(ends, device=ids.device)[:, None]
    # Tokens beyond may look like visual ones: an untrained model generates any.
    if bool((visual.any(1) & ~(visual & within).any(1)).any()):
        raise InputError(
            "the prompt would end before its image",
            "Give labels, logits_to_keep or prompt lengths that begin after the last visual token",
        )
    return ends


def _from_lengths(ids: Tensor, mask: Tensor | None, lengths: Sequence[int]) -> list[int]:
    valid = torch.ones_like(ids) if mask is None else mask.to(ids.device).long()
    if len(lengths) != len(ids):
        raise InputError(f"{len(lengths)} prompt lengths for {len(ids)} samples", "Give one for each sample")
    wanted = torch.tensor(list(lengths), device=ids.device)
    if bool((wanted < 1).any()) or bool((wanted > valid.sum(1)).any()):
        raise InputError(
            f"prompt lengths {list(lengths)} do not fit samples of {valid.sum(1).tolist()} tokens",
            "Count the tokens of each prompt, without padding",
        )
    whole = wanted == valid.sum(1)
    ends = (valid.cumsum(1) >= wanted[:, None]).int().argmax(1) + 1
    return torch.where(whole, ids.shape[1], ends).tolist()


def _from_prompt(count: int, prompt: int) -> int:
    if count < prompt:
        raise RuntimeStateError(
            f"the prompt arrives in chunks ({count} of {prompt} tokens), which a plan cannot prune",
            "Unset prefill_chunk_size",
        )
    return prompt


@dataclass(frozen=True)
class Continued:
    """A forward in two parts.

    Attributes:
        prompt, rest: arguments for the prompt, and for what follows over the same cache.
        columns: of the prompt and of the rest, ``[B, p]`` and ``[B, c]``: where each row stands in the forward, -1 for
            padding.
        asked: the arguments of the whole forward.
    """

    prompt: dict[str, Any]
    rest: dict[str, Any]
    columns: tuple[Tensor, Tensor]
    asked: dict[str, Any]
    vocabulary: int

    def join(self, model: Any, prompt: Any, rest: Any) -> Any:
        """One output out of two: logits as they were asked for, and the loss where there are labels."""
        rest.logits = self._logits(prompt.logits, rest.logits)
        if self.asked.get("use_cache") is False:
            rest.past_key_values = None
        loss = None
        if self.asked.get("labels") is not None:
            items = {name: self.asked[name] for name in ("num_items_in_batch",) if name in self.asked}
            loss = model.loss_function(
                logits=rest.logits, labels=self.asked["labels"], vocab_size=self.vocabulary, **items
            )
            rest["loss"] = loss
        if self.asked.get("return_dict") is not False:
            return rest
        values = tuple(value for name, value in rest.items() if name != "loss")
        return values if loss is None else (loss, *values)

    def _logits(self, prompt: Tensor, rest: Tensor) -> Tensor:
        batch, count = self.asked["input_ids"].shape
        wide = rest.new_zeros(batch, count + 1, rest.shape[-1])
        for columns, logits in zip(self.columns, (prompt, rest), strict=True):
            place = columns[:, columns.shape[1] - logits.shape[1] :].to(logits.device)
            place = torch.where(place < 0, count, place)[..., None].expand_as(logits)
            wide = wide.scatter(1, place, logits.to(wide.device))
        keep = int(self.asked.get("logits_to_keep") or 0)
        return wide[:, count - keep if keep else 0 : count].contiguous()


def split(kwargs: dict[str, Any], ends: Sequence[int], parts: Parts) -> Continued:
    """A forward as a prompt and its continuation.

    Prompts that end in different columns are shifted to end together: padding moves, neighbours stay neighbours.

    Args:
        kwargs: the model's arguments.
        ends: the column after each prompt.
        parts: the model.
    """
    ids: Tensor = kwargs["input_ids"]
    count = ids.shape[1]
    config = parts.tower.config
    cache = kwargs.get("past_key_values")
    if cache is None:
        cache = DynamicCache(config=config)
    prompt_width, rest_width = max(ends), count - min(ends)
    end = torch.tensor(list(ends), device=ids.device)[:, None]
    before = torch.arange(-prompt_width, 0, device=ids.device) + end
    after = torch.arange(rest_width, device=ids.device) + end
    columns = (before.clamp(min=-1), torch.where(after < count, after, -1))
    mask = kwargs.get("attention_mask")
    ragged = len(set(ends)) > 1
    if ragged and mask is None:
        mask = torch.ones_like(ids)
    keep = int(kwargs.get("logits_to_keep") or 0)
    shared = {name: value for name, value in kwargs.items() if name not in ("labels", "cache_position")}
    shared |= {"past_key_values": cache, "use_cache": True, "return_dict": True}
    prompt, rest = dict(shared), dict(shared)
    if keep and not ragged:
        prompt["logits_to_keep"], rest["logits_to_keep"] = max(keep - rest_width, 1), min(keep, rest_width)
    elif keep:
        prompt["logits_to_keep"] = rest["logits_to_keep"] = 0
    blank = next(token for token in range(len(parts.visual_ids) + 1) if token not in parts.visual_ids)
    for part, of_part in ((prompt, columns[0]), (rest, columns[1])):
        for name in _PER_TOKEN:
            if isinstance(kwargs.get(name), Tensor):
                part[name] = _columns(kwargs[name], of_part, blank if name == "input_ids" else 0)
    if mask is not None:
        masks = [_columns(mask, of_part, 0) for of_part in columns]
        prompt["attention_mask"], rest["attention_mask"] = masks[0], torch.cat(masks, dim=1)
    for name in _OF_PROMPT:
        if name in rest:
            rest[name] = None
    return Continued(prompt, rest, columns, kwargs, int(config.vocab_size))


def _columns(table: Tensor, columns: Tensor, blank: int) -> Tensor:
    """Columns ``[B, c]`` of a table ``[..., B, n]``, `blank` where the column is -1."""
    columns = columns.to(table.device)
    if table.shape[-2] == 1:  # one row for all samples
        table = table.expand(*table.shape[:-2], len(columns), -1)
    index = columns.clamp(min=0).expand(*table.shape[:-1], -1)
    return table.gather(-1, index).masked_fill(columns < 0, blank)
