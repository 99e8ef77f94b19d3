"""Numbers in the units that people read: per cent, FLOPs, bytes and milliseconds with a prefix."""

from __future__ import annotations

import math

from planner.evidence import Measured

_PREFIXES = ("", "K", "M", "G", "T", "P")


def percent(share: float, digits: int = 0) -> str:
    """A share in per cent, with a digit more where rounding would make it all or nothing: ``98 %``, ``99.5 %``."""
    exact = 100 * share
    fine = not digits and (0 < abs(exact) < 1 or 99 < exact < 100)
    return f"{exact:.{1 if fine else digits}f} %"


def share_with_interval(measured: Measured | None, digits: int = 1) -> str:
    """A measured share with its interval, in per cent: ``97.3 % (95.1-98.5)``; empty where there is none."""
    if measured is None:
        return ""
    value, low, high = (f"{100 * one:.{digits}f}" for one in (measured.value, measured.low, measured.high))
    return f"{value} % ({low}-{high})"


def flops(count: float) -> str:
    """``790 MFLOP``."""
    return _scaled(count, "FLOP")


def size(count: float) -> str:
    """Bytes in powers of 1000: ``404 KB``."""
    return _scaled(count, "B")


def _scaled(count: float, unit: str) -> str:
    """Three digits, at most, with a prefix."""
    power = min(int(math.log10(count)) // 3, len(_PREFIXES) - 1) if count >= 1 else 0
    value = count / 1000**power
    return f"{value:.{max(0, 2 - int(math.log10(value))) if power else 0}f} {_PREFIXES[power]}{unit}"
