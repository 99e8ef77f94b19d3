"""How much context to drop, by its length: the quadratic that calibration fits (context pruning, appendix I)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RateFit:
    """``rate = c2 * n^2 + c1 * n + c0`` for a context of n tokens, inside the lengths that were measured.

    Attributes:
        coefficients: ``(c2, c1, c0)``.
        shortest, longest: lengths the fit rests on.
        highest: largest rate that was measured.
        r2: share of the variance of the best rates explained; None where they are all equal.
    """

    coefficients: tuple[float, float, float]
    shortest: float
    longest: float
    highest: float
    r2: float | None

    def rate(self, tokens: float) -> float:
        """The rate for a context length, which is held to the range of what was measured."""
        held = min(max(tokens, self.shortest), self.longest)
        c2, c1, c0 = self.coefficients
        return min(max((c2 * held + c1) * held + c0, 0.0), self.highest)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types, see `from_json`."""
        return {**vars(self), "coefficients": list(self.coefficients)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RateFit:
        """The inverse of `as_json`."""
        return cls(**{**values, "coefficients": tuple(values["coefficients"])})
