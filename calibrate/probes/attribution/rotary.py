"""The rotary position embedding, forwards only, in the rotate-half form of Llama and its relatives.

Mean keys are averaged *before* it, so they have to be turned to the positions at hand. `same_rotation` checks our
form against the model's own result, so that a model with another one is refused and never silently mis-rotated.
"""

from __future__ import annotations

import torch


def rotate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn keys ``[heads, n, head size]`` by ``cos, sin [n, rotary size]``; further head dimensions pass unturned."""
    turned, rest = keys[..., : cos.shape[-1]], keys[..., cos.shape[-1] :]
    half = turned.shape[-1] // 2
    swapped = torch.cat((-turned[..., half:], turned[..., :half]), dim=-1)
    return torch.cat((turned * cos + swapped * sin, rest), dim=-1)


def same_rotation(before: torch.Tensor, after: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """True when `rotate` turns ``before`` into the model's rotated keys ``after``, within the dtype's rounding."""
    expected = rotate(before, cos, sin)
    # Eight roundings of slack; a wrong form is off by the size of the keys themselves.
    slack = 8 * torch.finfo(after.dtype).eps * before.abs().max()
    return bool((expected - after).abs().max() <= slack)
