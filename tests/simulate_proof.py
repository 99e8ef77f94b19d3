"""What a proof is worth: planted truths, ladders frozen by a search that misjudges them, and the real `prove`.

    python -m tests.simulate_proof --out reports/proof.md

In a world, the loss of a policy falls with what it costs; the dense model costs 1 and loses nothing. A search aims at
losses and misses them: all rungs of a ladder by one factor, each by one of its own. Losses of rungs are correlated, as
those of one family on the same samples are. A violation is a shipped plan whose true loss is above the limit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from calibrate.deciding.power import aims, allowed, least
from calibrate.deciding.proof import Rung, prove
from calibrate.deciding.split import sizes
from planner.schedule import dense

LIMIT, CONFIDENCE = 0.02, 0.8
#: Cost at which the true loss is the limit.
_COST_AT_LIMIT = 0.4
_CORRELATION = 0.9


@dataclass(frozen=True)
class World:
    """How losses go with costs, and how far a search is off.

    Attributes:
        slope: tenfold changes of the loss per whole dense cost.
        together, apart: standard deviations of the logarithm of what a search is off by.
        shuffled: the ladder's order says nothing about the truth.
        truth: of every rung, in limits, whatever was aimed at: a world in which there is no good plan.
    """

    name: str
    slope: float
    together: float
    apart: float = 0.2
    shuffled: bool = False
    truth: float | None = None


WORLDS = (
    World("slow, well searched", 2, 0.3),
    World("slow, badly searched", 2, 0.8),
    World("steep, well searched", 4, 0.3),
    World("steep, badly searched", 4, 0.8),
    World("nothing is as it seems", 2, 1.5, apart=1.0, shuffled=True),
    World("all a little too bad", 2, 0.0, truth=1.01),
)
#: Samples to certify, of all: half of them, or most.
Split = Callable[[int], int]
#: What rungs aim at.
Aims = Callable[[int], Sequence[float]]


def near(certify: int) -> Sequence[float]:
    """Five rungs from half of the limit on: what a search with a margin of one half ends at."""
    return () if allowed(certify, LIMIT, CONFIDENCE) < 0 else np.linspace(0.5, 0.9, 5) * LIMIT


def wide(certify: int) -> Sequence[float]:
    """The ladder that calibration is advised to freeze."""
    return aims(certify, LIMIT, CONFIDENCE)


PROCEDURES: dict[str, tuple[Split, Aims]] = {
    "half certify, near": (lambda n: n // 2, near),
    "most certify, near": (lambda n: sizes(n, LIMIT, CONFIDENCE)[2], near),
    "most certify, wide": (lambda n: sizes(n, LIMIT, CONFIDENCE)[2], wide),
}


def run(world: World, samples: int, procedure: tuple[Split, Aims], rng: np.random.Generator) -> tuple[float, bool]:
    """One calibration: what the shipped plan costs, and whether it violates the limit."""
    split, aimed = procedure
    certify = split(samples)
    targets = np.array(aimed(certify))
    if not len(targets):
        return 1.0, False
    off = world.together * rng.standard_normal() + world.apart * rng.standard_normal(len(targets))
    truth = np.clip(targets * np.exp(off), 1e-6, 0.5)
    if world.truth is not None:
        truth = np.full(len(targets), world.truth * LIMIT)
    costs = np.clip(_COST_AT_LIMIT + np.log10(LIMIT / truth) / world.slope, 0.05, 0.99)
    order = rng.permutation(len(targets)) if world.shuffled else np.arange(len(targets))
    lost = _losses(truth, certify, rng)
    ladder = [Rung(str(i), dense(2), float(costs[i])) for i in order]
    found = prove(ladder, lambda rung: lost[:, int(rung.policy)], LIMIT, CONFIDENCE, binary=True).shipped
    return (1.0, False) if found is None else (found.rung.flops, bool(truth[int(found.rung.policy)] > LIMIT))


def _losses(truth: NDArray[np.float64], certify: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """0/1 losses ``[certify, rungs]`` with these expectations, of one normal for each sample and one for each loss."""
    shared = rng.standard_normal((certify, 1))
    own = rng.standard_normal((certify, len(truth)))
    drawn = math.sqrt(_CORRELATION) * shared + math.sqrt(1 - _CORRELATION) * own
    return (drawn < norm.ppf(truth)).astype(np.float64)


def simulate(world: World, samples: int, name: str, runs: int) -> tuple[float, int]:
    """Mean cost, and violations."""
    rng = np.random.default_rng([samples, runs])
    outcomes = [run(world, samples, PROCEDURES[name], rng) for _ in range(runs)]
    return float(np.mean([cost for cost, _ in outcomes])), sum(violated for _, violated in outcomes)


def most(runs: int) -> int:
    """More violations than this are not to be expected of a valid procedure: with probability 0.001."""
    return int(binom.ppf(0.999, runs, 1 - CONFIDENCE))


def report(sizes_: Sequence[int], runs: int) -> str:
    """All worlds, sizes and procedures as Markdown."""
    lines = [
        "# What a proof is worth",
        "",
        f"Made by `python -m tests.simulate_proof`: {runs} runs each, limit {LIMIT:g}, confidence {CONFIDENCE:g}. "
        "Mean cost of the shipped plan (dense is 1; a plan exactly at the limit costs "
        f"{_COST_AT_LIMIT:g}), and the share of runs that ship one above the limit (promised: at most "
        f"{1 - CONFIDENCE:.2f}). {least(LIMIT, CONFIDENCE)} certify samples are needed to prove anything.",
        "",
        "| world | samples | " + " | ".join(PROCEDURES) + " |",
        "|---|---|" + "---|" * len(PROCEDURES),
    ]
    for world in WORLDS:
        for samples in sizes_:
            cells = [simulate(world, samples, name, runs) for name in PROCEDURES]
            shown = " | ".join(f"{cost:.2f} ({violations / runs:.2f})" for cost, violations in cells)
            lines.append(f"| {world.name} | {samples:,} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the report, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    text = report((64, 128, 256, 512, 1024, 2048), given.runs)
    if given.out is None:
        print(text, end="")
    else:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
