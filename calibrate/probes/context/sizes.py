"""How the model does by the size of what is asked for (context pruning 3.4, figure 4)."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibrate.probes.stats import Array, mean, proportion

#: Thirds of the samples that state a size.
SIZES = ("small", "medium", "large")


def by_size(sizes: Array, right: Array, visual: Array) -> dict[str, Any] | None:
    """Thirds of the samples by size: of each how many, how large at most, how they were judged and what the image gets.

    Args:
        sizes: of what is asked for, ``[S]``; 0 where unknown, which leaves a sample out.
        right: whether the dense model was right, ``[S, lengths]``, NaN left out.
        visual: its visual dependency, ``[S, lengths]``.

    Returns:
        JSON entries by group; None with fewer different sizes than groups.
    """
    stated = sizes > 0
    if len(np.unique(sizes[stated])) < len(SIZES):
        return None
    bounds = np.quantile(sizes[stated], [1 / len(SIZES), 2 / len(SIZES)])
    group = np.where(stated, np.searchsorted(bounds, sizes), -1)
    return {
        name: {
            "samples": int((group == number).sum()),
            "largest": float(sizes[group == number].max()),
            "right": shares_of(right[group == number]),
            "visual_dependency": mean(visual[group == number]),
        }
        for number, name in enumerate(SIZES)
        if (group == number).any()
    }


def shares_of(hits: Array) -> list[Any]:
    """Proportions over samples (first axis), NaN left out, in the shape of the rest."""
    if hits.ndim == 1:
        return proportion(int(np.nansum(hits)), int((~np.isnan(hits)).sum()))  # type: ignore[return-value]
    return [shares_of(hits[:, column]) for column in range(hits.shape[1])]
