"""Question packing: an image once, and every question about it as a segment of its own, in one sequence.

A text token sees the shared prefix (``<s>USER: `` and the image) and the earlier tokens of its own segment; positions
start again behind the image in every segment. So the logits equal those of separate prompts, at a sixth of the cost.
"""

from __future__ import annotations

import math
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
        visual: ``[B, S]``, true at the visual tokens.
        labels: ``[B, S]``, the *next* token where it is trained on (answer and end of text), else -100.
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
    """Builds packs with one tokenizer.

    Args:
        tokenizer: of the model.
        prompt: how a question is asked; holds ``<image>`` once, unless there are no visual tokens, and ``{question}``.
        visual_tokens: of one image.
        multiple: sequences are padded to a multiple of this.
    """

    def __init__(
        self, tokenizer: Any, prompt: str = PROMPT, visual_tokens: int = VISUAL_TOKENS, multiple: int = 1
    ) -> None:
        self.tokenizer = tokenizer
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.image = tokenizer.convert_tokens_to_ids("<image>")
        self.multiple = multiple
        before, self._after = prompt.split("<image>") if visual_tokens else ("", prompt)
        self.prefix: list[int] = tokenizer(before + "<image>" * visual_tokens)["input_ids"]
        self._segment = lru_cache(maxsize=1 << 16)(self._tokenize)

    def _tokenize(self, prompt: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        text = self._after.format(question=prompt)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]), tuple(
            answer_ids(self.tokenizer, answer)
        )

    def length(self, prompt: str, answer: str) -> int:
        """Tokens that a question and its answer take up in a pack."""
        return sum(map(len, self._segment(prompt, answer)))

    def pack(self, groups: list[list[tuple[str, str]]]) -> Pack:
        """Pack (question, answer) pairs, one list per image."""
        rows = [[self._segment(prompt, answer) for prompt, answer in group] for group in groups]
        size = len(self.prefix) + max(sum(len(q) + len(a) for q, a in row) for row in rows)
        shape = (len(rows), math.ceil(size / self.multiple) * self.multiple)
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
            for number, (asked, answer) in enumerate(parts, start=1):
                answered = at + len(asked)
                end = answered + len(answer)
                input_ids[row, at:end] = torch.tensor(asked + answer)
                positions[row, at:end] = torch.arange(start, start + end - at)
                segment[row, at:end] = number
                labels[row, answered - 1 : end] = torch.tensor((*answer, self.end))
                ask.append((row, answered - 1))
                at = end
        return Pack(input_ids, positions, segment, input_ids == self.image, labels, torch.tensor(ask))
