"""Answers whose generated text finds no visual keys and values in some layers (VisiPruner table 2).

The prompt is the dense model's, and a changed answer differs first somewhere. So the dense answer is put behind the
prompt, and its rows run once for each range of layers: the answer stays the same where every row predicts its next
token. Where prompt rows see what follows them, the answers are generated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibrate.inputs.batches import Batch
from calibrate.inputs.encode import Inputs
from calibrate.probes.masking.replay import Replay
from calibrate.probes.masking.sight import Sight
from calibrate.probes.stats import Array
from calibrate.running.execute import generate
from planner.runtime.model.adapters import find_parts
from planner.schedule import Schedule, Stage

#: Arguments with one entry per token, in their last dimension, where 0 is text.
_TYPES = ("token_type_ids", "mm_token_type_ids")


def cache_ranges(layers: int) -> list[tuple[int, int]]:
    """Layer ranges whose visual cache is removed: up to and from each quarter, and everywhere."""
    quarters = sorted({layers * q // 4 for q in (1, 2, 3)} - {0})
    return [(0, layers), *((0, k) for k in quarters), *((k, layers) for k in quarters)]


def uncached(batch: Batch, answer_tokens: int) -> tuple[Array, Array]:
    """Whether greedy answers stay the same, ``[B, ranges]`` with NaN where nothing was decoded, and how many tokens
    were decoded over the cache, ``[B]``: those after the first, the end of the answer included."""
    model, inputs = batch.model, batch.inputs
    layers = model.config.get_text_config().num_hidden_layers
    answers = generate(model, inputs, answer_tokens)
    decoded = _lengths(answers, model) - 1
    same = np.full((len(answers), len(cache_ranges(layers))), np.nan, np.float32)
    if decoded.any():
        found = _forced(model, inputs, answers, decoded, layers)
        if found is None:
            found = _generated(model, inputs, answers, layers)
        same[decoded > 0] = found[decoded > 0]
    return same, decoded


def _forced(model: Any, inputs: Inputs, answers: Tensor, decoded: Array, layers: int) -> Array | None:
    """The answers as rows behind the prompt; None where they cannot stand there."""
    given, prompt = answers[:, :-1], inputs["input_ids"].shape[1]
    if torch.isin(given, torch.tensor(find_parts(model).visual_ids)).any():
        return None  # behind the prompt such a token would stand for an image
    with Replay(model, _continued(inputs, given), start=prompt, last=given.shape[1]) as replay:
        if not replay.shared:
            return None
        closed, found = Sight(text="none"), []
        wanted = torch.arange(given.shape[1]) < torch.from_numpy(decoded)[:, None]
        for first, last in cache_ranges(layers):
            sights = [closed if first <= layer < last else None for layer in range(layers)]
            tokens = replay.go_on(replay.states, 0, sights).reshape(*given.shape, -1).argmax(dim=-1)
            found.append(((tokens == answers[:, 1:]) | ~wanted).all(dim=1).numpy())
    return np.stack(found, axis=1).astype(np.float32)


def _generated(model: Any, inputs: Inputs, answers: Tensor, layers: int) -> Array:
    found = []
    for first, last in cache_ranges(layers):
        other = generate(model, inputs, answers.shape[1], schedule(first, last, layers))
        ends = zip(_lengths(answers, model), _lengths(other, model), answers.tolist(), other.tolist(), strict=True)
        found.append(np.asarray([one[:end] == two[:until] for end, until, one, two in ends]))
    return np.stack(found, axis=1).astype(np.float32)


def schedule(first: int, last: int, layers: int) -> Schedule:
    """Decoding cannot attend to visual tokens in ``[first, last)``."""
    stages = [Stage(first=first, last=last, cache_visual="none")]
    if first:
        stages.insert(0, Stage(first=0, last=first))
    if last < layers:
        stages.append(Stage(first=last, last=layers))
    return Schedule(stages=tuple(stages))


def _continued(inputs: Inputs, tokens: Tensor) -> Inputs:
    """A prompt with tokens behind it."""
    ids = inputs["input_ids"]
    tokens = tokens.to(ids.device)
    valid = inputs.get("attention_mask", torch.ones_like(ids))
    changed = {
        "input_ids": torch.cat([ids, tokens], dim=1),
        "attention_mask": torch.cat([valid, torch.ones_like(tokens, dtype=valid.dtype)], dim=1),
    }
    for name in _TYPES:
        if name in inputs:
            changed[name] = torch.cat([inputs[name], torch.zeros_like(tokens, dtype=inputs[name].dtype)], dim=1)
    return {**inputs, **changed}


def _lengths(answers: Tensor, model: Any) -> Array:
    """Tokens of each answer, its end token included."""
    end = model.generation_config.eos_token_id
    ends = torch.tensor([] if end is None else [end] if isinstance(end, int) else list(end), dtype=answers.dtype)
    is_end = torch.isin(answers, ends)
    first = torch.where(is_end.any(1), is_end.int().argmax(1), answers.shape[1] - 1)
    return (first + 1).numpy()
