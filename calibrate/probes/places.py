"""Places of visual tokens in a square picture."""

from __future__ import annotations

import math

import numpy as np

from calibrate.probes.stats import Array


def square_side(tokens: int) -> int | None:
    """Side of a square token grid; None where so many tokens form none."""
    side = math.isqrt(tokens)
    return side if side and side * side == tokens else None


def border(side: int) -> Array:
    """The outermost ring of a grid, ``[side, side]``."""
    inside = np.zeros((side, side), bool)
    inside[1:-1, 1:-1] = True
    return ~inside
