"""Question packing: an image once, and every question about it as a segment of its own, in one sequence.

A text token sees the shared prefix (``<s>USER: `` and the image) and the earlier tokens of its own segment; positions
start again behind the image in every segment. So the logits equal those of separate prompts, at a sixth of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .build import PROMPT, VISUAL_TOKENS, answer_ids

IGNORED = -100
PADDING = -1


@dataclass
class Pack:
    """A batch of packed sequences; ``S`` is the longest, ``B`` the number of images.

    Attributes:
        input_ids: ``[B, S]``.
        positions: ``[B, S]`` rotary positions.
        segment: ``[B, S]``: 0 is the prefix, 1.. the questions, -1 padding.
        visual: ``[B, S]``, true at the 144 visual tokens.
        labels: ``[B, S]``, the *next* token where it is trained on (answer and ``</s>``), else -100.
        ask: ``[n, 2]``, row and column of the last prompt token of each question, questions in the order given.
    """

    input_ids: Tensor
    positions: Tensor
    segment: Tensor
    visual: Tensor
    labels: Tensor
    ask: Tensor

    def to(self, device: torch.device) -> Pack:
        """The same pack on another device."""
        return Pack(**{name: value.to(device) for name, value in vars(self).items()})

    def visible(self) -> Tensor:
        """Attention edges ``[B, S, S]`` (query, key) without any restriction."""
        size = self.segment.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=self.segment.device).tril()
        key = self.segment[:, None, :]
        return causal & ((key == 0) | (key == self.segment[:, :, None]))


class Packer:
    """Builds packs with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.image = tokenizer.convert_tokens_to_ids("<image>")
        before, self._after = PROMPT.split("<image>")
        self.prefix: list[int] = tokenizer(before + "<image>" * VISUAL_TOKENS)["input_ids"]
        self._segment = lru_cache(maxsize=None)(self._tokenize)

    def _tokenize(self, prompt: str, answer: str) -> tuple[int, ...]:
        text = self._after.format(question=prompt)
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], *answer_ids(self.tokenizer, answer))

    def pack(self, groups: list[list[tuple[str, str]]]) -> Pack:
        """Pack (question, answer) pairs, one list per image."""
        rows = [[self._segment(prompt, answer) for prompt, answer in group] for group in groups]
        size = len(self.prefix) + max(sum(map(len, row)) for row in rows)
        shape = (len(rows), size)
        input_ids = torch.full(shape, self.pad)
        positions, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
        segment = torch.full(shape, PADDING)
        ask = []
        start = len(self.prefix)
        for row, parts in enumerate(rows):
            input_ids[row, :start] = torch.tensor(self.prefix)
            positions[row, :start] = torch.arange(start)
            segment[row, :start] = 0
            at = start
            for number, part in enumerate(parts, start=1):
                end = at + len(part)
                input_ids[row, at:end] = torch.tensor(part)
                positions[row, at:end] = torch.arange(start, start + len(part))
                segment[row, at:end] = number
                labels[row, end - 2], labels[row, end - 1] = part[-1], self.end
                ask.append((row, end - 2))
                at = end
        return Pack(input_ids, positions, segment, input_ids == self.image, labels, torch.tensor(ask))
