"""Answers as token ids, and an answer that is forced: the prompt and its answer in one forward.

Under a schedule the runtime runs such a forward as prompt and continuation (`planner.runtime.execution.continuation`):
what follows the prompt sees the pruned cache, as a generated answer would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from calibrate.inputs.batches import Batch
from calibrate.running.execute import executing, generate
from planner.schedule import Schedule


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        text: without special tokens.
        ids: its tokens, the end token included.
        ended: it came to an end before the token limit.
    """

    text: str
    ids: tuple[int, ...]
    ended: bool

    @property
    def length(self) -> int:
        """Tokens, the end token left out."""
        return len(self.ids) - self.ended


@dataclass(frozen=True)
class Forced:
    """What a model thinks along an answer that it is given: per token its own choice, and the answer's log-probability
    in nats."""

    choices: Tensor
    log_probabilities: Tensor


def answers(batch: Batch, max_new_tokens: int, schedule: Schedule | None = None, seed: int = 0) -> list[Answer]:
    """Greedy answers of a batch."""
    ids = generate(batch.model, batch.inputs, max_new_tokens, schedule, seed)
    return [
        _answer(row, text, ends_of(batch.model))
        for row, text in zip(ids.tolist(), batch.encoder.decode(ids), strict=True)
    ]


def force(batch: Batch, given: Sequence[Answer], schedule: Schedule | None = None, seed: int = 0) -> list[Forced]:
    """Run the prompts of a batch with an answer behind each, in one forward."""
    prompts = batch.inputs
    width, length = max(len(answer.ids) for answer in given), prompts["input_ids"].shape[1]
    device = prompts["input_ids"].device
    # What stands behind a shorter answer is masked.
    tail = prompts["input_ids"][:, -1:].repeat(1, width)
    valid = torch.zeros_like(tail)
    for row, answer in enumerate(given):
        tail[row, : len(answer.ids)] = torch.tensor(answer.ids, device=device)
        valid[row, : len(answer.ids)] = 1
    mask = prompts.get("attention_mask", torch.ones_like(prompts["input_ids"]))
    inputs: dict[str, Any] = {
        name: pad(value, (0, width)) if value.ndim == 2 and value.shape[1] == length else value
        for name, value in prompts.items()
    }
    # A placeholder in an answer, which an untrained model may give, would ask for an image: text stands in for it.
    placeholders = torch.isin(tail, batch.encoder.visual_ids.to(device))
    shown = torch.where(placeholders, prompts["input_ids"][:, -1:], tail)
    inputs["input_ids"] = torch.cat([prompts["input_ids"], shown], dim=1)
    inputs["attention_mask"] = torch.cat([mask, valid.to(mask.dtype)], dim=1)
    with torch.inference_mode(), executing(batch.model, schedule, seed):
        # As many logits as the answer has tokens, and one: this also tells a plan where the prompt ends.
        logits = batch.model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
        found = []
        for row, answer in enumerate(given):
            ours = logits[row, : len(answer.ids)].float().log_softmax(dim=-1)
            chosen = ours.gather(1, tail[row, : len(answer.ids), None]).squeeze(1)
            found.append(Forced(ours.argmax(dim=-1).cpu(), chosen.cpu()))
    return found


def ends_of(model: Any) -> frozenset[int]:
    """Tokens with which the model ends an answer."""
    found = model.generation_config.eos_token_id
    return frozenset() if found is None else frozenset([found] if isinstance(found, int) else found)


def _answer(row: list[int], text: str, ends: frozenset[int]) -> Answer:
    at = next((place for place, token in enumerate(row) if token in ends), None)
    return Answer(text, tuple(row if at is None else row[: at + 1]), at is not None)
