"""What decisions are worth: planted truths (`tests.planted`), and the real `decide` on samples of them.

    python -m tests.simulate_decisions --out reports/decision.md

For every world and number of samples: the mean cost of the shipped plan, as a share of dense decoder FLOPs, and how
often a plan was shipped whose true loss is above the limit. Beside it, on the same samples and with the same executed
candidates, two other ways to choose:

* **many looks**: half of the samples propose; on the others candidates are tried in order of cost, up to 40 of them,
  and the first whose one-sided Wilson bound holds is the plan. This is what calibration once did.
* **plain ladder**: five rungs, spaced evenly over the cost of the executed candidates that lost no more than the limit,
  and tested as the real ones are.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binom
from tqdm import tqdm

import calibrate.deciding
from calibrate.deciding.decide import ChosenPlan
from calibrate.deciding.demand import Demand
from calibrate.deciding.objective import Costing, Objective, profile_workload
from calibrate.deciding.power import allowed
from calibrate.deciding.space import Space
from calibrate.deciding.split import sizes
from calibrate.probes.stats import wilson
from planner.document import digest, write_atomic
from planner.policies import parse
from tests.planted import SPEC, Drawn, Population, World, decided, planted_profile

DEMAND = Demand()
SIZES = (64, 256, 512, 1024)
#: Calibrations a world, up to so many samples; half as many above.
RUNS, _FEW = 40, 256
#: Tokens are best dropped before the decoder, or inside it; slowly falling answers; a loss that any change costs, just
#: below and just above the limit; ways of dropping that hurt different questions.
WORLDS = (
    World("before the decoder", entry={"encoder_norm": (0.08, 3.0), "": (0.2, 3.0)}, inner={"": (0.05, 2.5)}),
    World("inside the decoder", entry={"": (0.3, 2.0)}, inner={"influence_l2": (0.015, 2.5), "": (0.06, 2.5)}),
    World("slow", entry={"": (0.03, 1.2)}, inner={"": (0.02, 1.2)}, exit=(3.0, 1.5)),
    World("any change costs 0.012", entry={"": (0.08, 3.0)}, any_change=0.012),
    World("any change costs 0.0225", entry={"": (0.08, 3.0)}, any_change=0.0225),
    World("independent", entry={"": (0.08, 3.0)}, inner={"": (0.05, 2.5)}, likeness=0.0),
)
_LOOKS, _RUNGS = 40, 5
#: A way to choose: policy and whether it is dense, from a decision's trials and certify losses of a policy.
Way = Callable[[ChosenPlan, Callable[[str], int], int], "str | None"]
#: What a shipped plan costs, and whether its true loss is above the limit.
Outcome = tuple[float, bool]
#: Outcomes of each way, run by run, by world and number of samples.
Kept = dict[str, list[dict[str, Outcome]]]


def many_looks(plan: ChosenPlan, misses: Callable[[str], int], n: int) -> str | None:
    """The cheapest of many candidates whose interval holds."""
    for trial in plan.trials[:_LOOKS]:
        if wilson(n - misses(trial.policy), n, DEMAND.confidence, one_sided=True)[0] >= DEMAND.agreement:
            return trial.policy
    return None


def plain_ladder(plan: ChosenPlan, misses: Callable[[str], int], n: int) -> str | None:
    """The last of a few rungs, evenly spaced in cost, up to the first that fails."""
    good = [trial for trial in plan.trials if trial.loss <= DEMAND.limit]
    if not good:
        return None
    wanted = np.linspace(good[-1].share, good[0].share, _RUNGS)
    rungs = dict.fromkeys(min(good, key=lambda one: abs(one.share - at)).policy for at in wanted)
    permitted, shipped = allowed(n, DEMAND.limit, DEMAND.confidence), None
    for policy in rungs:
        if misses(policy) > permitted:
            break
        shipped = policy
    return shipped


WAYS: dict[str, Way] = {"many looks": many_looks, "plain ladder": plain_ladder}


def simulate(population: Population, samples: int, run: int, space: Space) -> dict[str, Outcome]:
    """Every way on the same samples: one calibration."""
    rng, outcomes = np.random.default_rng([samples, run]), {}

    def note(name: str, policy: str | None) -> None:
        found = None if policy is None or policy == "dense" else space.candidate(parse(policy))
        cost, loss = (1.0, 0.0) if found is None else (found.share, population.expected(found.schedule))
        outcomes[name] = cost, loss > DEMAND.limit

    plan = decided(population, samples, rng, DEMAND, space=space)
    note("calibration", str(plan.policy))
    for name, way in WAYS.items():
        n = samples // 2 if name == "many looks" else sizes(samples, DEMAND.limit, DEMAND.confidence)[2]
        note(name, way(plan, _misses(population, space, Drawn(population, n, rng)), n))
    return outcomes


def _misses(population: Population, space: Space, drawn: Drawn) -> Callable[[str], int]:
    def of(policy: str) -> int:
        found = space.candidate(parse(policy))
        return 0 if found is None else int(population.losses(found.schedule)[drawn.ids].sum())

    return of


def most(runs: int) -> int:
    """More violations than this are not to be expected of a valid procedure: with probability 0.001."""
    return int(binom.ppf(0.999, runs, 1 - DEMAND.confidence))


def space() -> Space:
    """All that is proposed in every world: they share one profile."""
    profile = planted_profile()
    return Space(profile, Costing(SPEC, profile_workload(profile), Objective()))


def add_runs(kept: Kept, run: int, cells: Sequence[tuple[World, int]], shared: Space) -> None:
    """Run number `run` of each cell, where it is missing."""
    for world, group in itertools.groupby(cells, lambda cell: cell[0]):
        population = world.population()
        for _, samples in group:
            done = kept.setdefault(_cell(world, samples), [])
            if len(done) == run:
                done.append(simulate(population, samples, run, shared))


def report(kept: Kept, cells: Sequence[tuple[World, int]]) -> str:
    """All worlds and sizes as Markdown."""
    lines = [
        "# What decisions are worth",
        "",
        f"Made by `python -m tests.simulate_decisions`: an agreement of {DEMAND.agreement:g} with confidence "
        f"{DEMAND.confidence:g}. Mean decoder FLOPs of the shipped plan (dense is 1), and in brackets the share of "
        "runs that ship a plan whose true loss is above the limit (promised: at most "
        f"{1 - DEMAND.confidence:.2f}). What the columns and worlds are: `tests/simulate_decisions.py`.",
        "",
        "| world | samples | runs | calibration | " + " | ".join(WAYS) + " |",
        "|---|---|---|" + "---|" * (1 + len(WAYS)),
    ]
    for world, samples in cells:
        outcomes = kept.get(_cell(world, samples), [])
        if outcomes:
            shown = " | ".join(_spelled([one[name] for one in outcomes]) for name in outcomes[0])
            lines.append(f"| {world.name} | {samples:,} | {len(outcomes)} | {shown} |")
    return "\n".join(lines) + "\n"


def _spelled(outcomes: Sequence[Outcome]) -> str:
    costs, violated = zip(*outcomes, strict=True)
    return f"{np.mean(costs):.2f} ({np.mean(violated):.2f})"


def _cell(world: World, samples: int) -> str:
    return f"{world.name}, {samples}"


def _code(shared: Space) -> str:
    """A digest of what decides, and of what there is to decide on: outcomes of others are let go."""
    sources = {path.name: path.read_text() for path in sorted(Path(calibrate.deciding.__path__[0]).glob("*.py"))}
    return digest([sources, [[one.name, one.share] for family in shared.families for one in family.members]])


def main() -> None:
    """Write the report after every round of runs; what is in the file beside it is not run again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS, help=f"half as many above {_FEW} samples")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    cells, file = [(world, n) for world in WORLDS for n in given.sizes], given.out.with_suffix(".runs.json")
    shared = space()
    code = _code(shared)
    state = json.loads(file.read_text()) if file.exists() else {}
    kept: Kept = state["runs"] if state.get("code") == code else {}
    for run in tqdm(range(given.runs)):
        add_runs(kept, run, [cell for cell in cells if cell[1] <= _FEW or run < given.runs // 2], shared)
        write_atomic(file, json.dumps({"code": code, "runs": kept}))
        write_atomic(given.out, report(kept, cells))


if __name__ == "__main__":
    main()
