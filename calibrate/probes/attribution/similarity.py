"""Do samples use the same heads? Cosine of their coefficients (head attribution 4.3, C.3, C.4)."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np

from calibrate.probes.attribution.response import Vector


def cosines(coefficients: Vector) -> Vector:
    """Cosine of each pair of rows, ``[S, S]`` from ``[S, N]``; 0 with a row of zeros."""
    norms = np.linalg.norm(coefficients, axis=1, keepdims=True)
    unit = coefficients / np.where(norms > 0, norms, 1)
    return np.asarray(unit @ unit.T)


def mean_cosines(
    coefficients: Vector, prompts: Sequence[Hashable], images: Sequence[Hashable]
) -> dict[str, float | None]:
    """Mean cosine over pairs of samples: all, same prompt and other images, other prompts and same image.

    None where there is no such pair.
    """
    table = cosines(coefficients)
    # In the order of NumPy's upper triangle.
    indices = list(itertools.combinations(range(len(table)), 2))
    same_prompt = np.array([prompts[a] == prompts[b] for a, b in indices], np.bool_)
    same_image = np.array([images[a] == images[b] for a, b in indices], np.bool_)
    pairs = table[np.triu_indices(len(table), k=1)]
    chosen = {
        "all": np.ones(len(pairs), np.bool_),
        "same_prompt": same_prompt & ~same_image,
        "same_image": same_image & ~same_prompt,
    }
    return {name: float(pairs[which].mean()) if which.any() else None for name, which in chosen.items()}
