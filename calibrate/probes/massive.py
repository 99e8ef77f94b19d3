"""Massive activations: which tokens count as attention sinks, in one definition for all probes.

A token is **hot** at a layer's input when its largest hidden value is massive twice over: at least `tau` times the
token's own root mean square (`phi` in VAR), and at least `MEDIAN_MULTIPLE` times the median magnitude of the prompt's
activations there. The first is the paper's; it cannot exceed sqrt(d), so the narrower a model, the less it tells. The
second is free of that ceiling. At the paper's hidden size it asks for less than the first: a token of 4096 normal
values, one of which is 20 times their root mean square, has a value of 31 medians.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from calibrate.probes.stats import Array
from planner.errors import InputError
from planner.policies.var import sink_threshold

EPS = 1e-6
MEDIAN_MULTIPLE = 20.0
#: The paper leaves the first two layers out: massive activations arise there.
FIRST_LAYER = 2
#: More of a prompt's tokens than this cannot all be sinks.
MOST_HOT = 0.5
#: Hidden values of a token that the median is taken over, evenly spaced: a median of thousands of values either way.
_SPACED = 64


def check_tau(tau: float | None) -> None:
    """Refuse a threshold that everything reaches.

    Raises:
        InputError: it is not above 0.
    """
    if tau is not None and not tau > 0:
        raise InputError(f"a sink threshold of {tau:g} makes every token a sink", "VAR uses tau 20")


def check_reachable(tau: float | None, hidden_size: int) -> None:
    """Refuse a threshold that nothing can reach.

    Raises:
        InputError: it is above the square root of the hidden size.
    """
    if tau is not None and tau > math.sqrt(hidden_size):
        raise InputError(
            f"no token can reach a sink threshold of {tau:g}: at hidden size {hidden_size} a value is at most "
            f"{math.sqrt(hidden_size):.4g} times its token's root mean square",
            f"Leave tau out for {sink_threshold(hidden_size):.4g}, or give less",
        )


def hot_tokens(
    hidden: torch.Tensor, valid: torch.Tensor, tau: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hot tokens, and the magnitude from which a value of a token is massive: both ``[B, n]``.

    Args:
        hidden: a layer's input, ``[B, n, d]``.
        valid: what is no padding, ``[B, n]``; padding is never hot.
        tau: None for `planner.policies.var.sink_threshold`.
    """
    width = hidden.shape[-1]
    precise = torch.promote_types(hidden.dtype, torch.float32)
    square = torch.linalg.vector_norm(hidden, dim=-1, dtype=precise).square() / width
    limit = (sink_threshold(width) if tau is None else tau) * (square + EPS).sqrt()
    limit = torch.maximum(limit, MEDIAN_MULTIPLE * _median(hidden, valid, precise)[:, None])
    peak = torch.maximum(hidden.amax(dim=-1), -hidden.amin(dim=-1))
    return (peak >= limit) & valid, limit


def _median(hidden: torch.Tensor, valid: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Median magnitude of each sample's activations, ``[B]``."""
    width = hidden.shape[-1]
    dims = torch.linspace(0, width - 1, min(width, _SPACED), device=hidden.device).round().long()
    spaced = hidden[..., dims].to(dtype).abs().masked_fill(~valid[..., None], torch.nan)
    return spaced.flatten(1).nanmedian(dim=1).values


def threshold_notes(hidden_size: int, tau: float, hot_share: Array) -> list[str]:
    """Sentences on where the threshold means nothing on this model; none where it does its work.

    Args:
        tau: the threshold in use.
        hot_share: mean share of a prompt's tokens that are hot, per layer ``[L]``.
    """
    notes = []
    # The largest of d normal values, about, in units of their root mean square.
    ordinary = math.sqrt(2 * math.log(max(hidden_size, 2)))
    if tau < 2 * ordinary:
        notes.append(
            f"The sink threshold means little at hidden size {hidden_size}: a token of ordinary values reaches "
            f"{ordinary:.2g} times its root mean square, a sink is asked for {tau:.2g} of at most "
            f"{math.sqrt(hidden_size):.2g}."
        )
    layers = np.flatnonzero(np.asarray(hot_share) > MOST_HOT).tolist()
    if layers:
        named = ", ".join(map(str, layers))
        notes.append(
            f"More than {MOST_HOT:.0%} of the tokens reach the sink threshold at the input of "
            f"{'layer' if len(layers) == 1 else 'layers'} {named}: what most tokens do marks no sink."
        )
    return notes
