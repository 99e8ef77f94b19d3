"""Run mutants through a reader, and count what becomes of them."""

from __future__ import annotations

import signal
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import Target

#: Seconds after which a reader counts as hanging; whole files take milliseconds.
HANG_S = 10.0


@dataclass
class Count:
    """What became of a target's mutants: ``refused``, ``read``, ``believed``, ``traceback``, ``hang``."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Hang(Exception):
    pass


@contextmanager
def limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(target: Target, mutants: int, start: int = 0) -> Count:
    """So many mutants of one target, the same ones for the same `start`."""
    count = Count()

    @seed(start)
    @settings(
        max_examples=mutants, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.mutants)
    def one(content: bytes) -> None:
        try:
            with limited():
                outcome = target.outcome(content)
        except Hang:
            outcome = "hang"
        except Exception:
            outcome = "traceback"
            place = traceback.format_exc().strip().splitlines()
            count.faults.append("\n".join(place[-6:]))
        count.outcomes[outcome] += 1
        if outcome in ("hang", "believed"):
            count.faults.append(f"{outcome}: {content[:300]!r}")

    one()
    return count
