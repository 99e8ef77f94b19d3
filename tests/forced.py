"""Generation along a given continuation, so that two implementations take the same steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tests.float64 import float64_throughout


def continuation(batch: int, steps: int = 5, seed: int = 9) -> Tensor:
    """Text tokens ``[B, steps]``, other ones for every sample."""
    return torch.randint(5, 110, (batch, steps), generator=torch.Generator().manual_seed(seed))


class _Force(LogitsProcessor):
    def __init__(self, prompt: int, generated: Tensor) -> None:
        self.prompt, self.generated = prompt, generated

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, float("-inf"))
        step = min(input_ids.shape[1] - self.prompt, self.generated.shape[1] - 1)
        return forced.scatter(1, self.generated[:, step : step + 1], 0.0)


def generate(model: Any, inputs: dict[str, Tensor], generated: Tensor, **options: Any) -> Any:
    """What `model.generate` returns when made to answer `generated`; it gives one ``[B, V]`` of logits more."""
    processor = LogitsProcessorList([_Force(inputs["input_ids"].shape[1], generated)])
    with torch.no_grad(), float64_throughout():
        return model.generate(
            **inputs,
            max_new_tokens=generated.shape[1] + 1,
            do_sample=False,
            logits_processor=processor,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )


def logits(model: Any, inputs: dict[str, Tensor], generated: Tensor, **options: Any) -> list[Tensor]:
    """Raw logits ``[B, V]``: of the prefill, then of each decode step."""
    return list(generate(model, inputs, generated, **options).logits)
