"""The best pruning rate against context length: a quadratic fit (context pruning, appendix I, figures 15 and 16)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrate.probes.stats import Array
from planner.context_rate import RateFit
from planner.errors import CalibrationError

#: The paper takes the mean of the best three adjacent rates as the best one, so that one lucky rate does not decide.
ADJACENT = 3


def best_rate(rates: Sequence[float], performance: Array) -> float:
    """Mean of the `ADJACENT` neighbouring rates with the highest mean performance; the lowest ones in a tie.

    Args:
        rates: ascending, ``[R]``. performance: at each, ``[R]``.

    Raises:
        CalibrationError: fewer rates than that.
    """
    if len(rates) < ADJACENT:
        raise CalibrationError(f"{len(rates)} rates are too few to find the best", f"Measure at least {ADJACENT}")
    windows = np.convolve(np.asarray(performance, np.float64), np.ones(ADJACENT) / ADJACENT, mode="valid")
    # Rounded, so that equal means are equal whatever the order of their sums.
    first = int(np.round(windows, 12).argmax())
    return float(np.mean(rates[first : first + ADJACENT]))


def fit_rates(lengths: Sequence[float], best: Sequence[float], highest: float) -> RateFit:
    """Least squares through ``(length, best rate)``.

    Raises:
        CalibrationError: fewer than three different lengths.
    """
    if len(set(lengths)) < 3:
        raise CalibrationError(
            f"{len(set(lengths))} context lengths are too few for a quadratic", "Measure at least three lengths"
        )
    # Scaled to about 1 while solving: squares of thousands of tokens beside the constant lose digits.
    scale = max(lengths)
    scaled_lengths = np.asarray(lengths, np.float64) / scale
    solved, *_ = np.linalg.lstsq(np.vander(scaled_lengths, 3), np.asarray(best, np.float64), rcond=None)
    residual = np.asarray(best) - np.vander(scaled_lengths, 3) @ solved
    spread = float(((np.asarray(best) - np.mean(best)) ** 2).sum())
    c2, c1, c0 = (float(c) for c in solved / [scale**2, scale, 1])
    r2 = 1 - float((residual**2).sum()) / spread if spread > 1e-12 else None
    return RateFit((c2, c1, c0), float(min(lengths)), float(max(lengths)), float(highest), r2)
