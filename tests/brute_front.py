"""What there is to be found for a bundled model: what is proposed, and what it makes together, without a search.

    python -m tests.brute_front reports/reference/windowed/plan.json \
        --profile profiles/reference/windowed/profile.json --out reports/reference/windowed/front.md

Every member of every family runs on the same few questions, which no calibration uses, and so does every composition on
a coarser grid of two members that each lose little there, as far as it costs no more than the plan, or little more.
What loses hardly more there than whatever is cheaper runs on four times as many, and again; then, the cheapest first,
on all that there are, up to one that loses no more than the plan, which stands beside what was found. A run that was
interrupted goes on from the file beside --out.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from calibrate.deciding.objective import Costing, Objective, profile_workload
from calibrate.deciding.space import Candidate, Family, Space
from calibrate.deciding.trials import Trials
from calibrate.inputs.batches import Batches
from calibrate.inputs.bundled import reference_path
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import identify
from calibrate.inputs.load import load
from calibrate.inputs.samples import SampleSet, load_samples
from calibrate.probes.stats import proportion
from calibrate.running.losses import LossRunner
from planner.document import write_atomic
from planner.plan import load_plan
from planner.policies import parse
from planner.profile import Profile
from planner.spec import ModelSpec

#: Of each family, every second member is laid over every third of another kind.
_OVER, _FIXED = 2, 3
#: What a part of a composition loses at most by itself, and anything that is run on more questions.
_PART_LOSES, _LOSES = 0.1, 0.025
#: What runs on more questions lost at most so many more than what is cheaper; and how many times more those are.
_SLACK, _TIMES = (1, 0), 4
#: What runs on all questions lost at most so many more than what is cheaper. On few, the best of so many is lucky:
#: asked no more, it would stand for what is to be had.
_SLACK_OF_ALL = 1


@dataclass(frozen=True)
class Found:
    """A candidate and how many of the many questions lost their answer."""

    candidate: Candidate
    misses: int
    n: int

    @property
    def row(self) -> str:
        """Of the table."""
        seen = proportion(self.misses, self.n)
        loss = f"{seen['value']:.3f} ({seen['low']:.3f}-{seen['high']:.3f})"
        return f"| {self.candidate.name} | {self.candidate.share:.3f} | {loss} |"


def alone(space: Space) -> list[Candidate]:
    """All that is proposed, each schedule once."""
    return list({one.schedule: one for family in space.families for one in family.members}.values())


def together(space: Space, good: Iterable[Candidate], below: float) -> Iterator[Candidate]:
    """Compositions, on a coarser grid, of two members that are good, as far as they cost less than `below`."""
    usable = {one.name for one in good}
    for family, other in itertools.permutations(space.families, 2):
        members = tuple(one for one in family.members[::_OVER] if one.name in usable)
        for fixed in other.members[::_FIXED]:
            made = None
            if members and fixed.name in usable:
                made = space.together(Family(family.name, members), fixed)
            if made is not None:
                yield from (one for one in made.members if one.share < below)


def executed(space: Space, trials: Trials, few: int, plan: Candidate) -> tuple[list[Found], int]:
    """What ran on all questions, and how many ran on few."""

    def ran(candidates: Iterable[Candidate], count: int, what: str) -> list[Found]:
        found = [
            Found(one, int(trials.losses(one.schedule, count).sum()), count)
            for one in tqdm(list(candidates), f"{what}, {count} questions")
        ]
        trials.save()
        return found

    single = ran(alone(space), few, "alone")
    good = [one.candidate for one in single if one.misses <= _PART_LOSES * few]
    pairs = {one.schedule: one for one in together(space, good, 1.1 * plan.share)}
    found = [*single, *ran(pairs.values(), few, "together")]
    tried, count = len(found), few
    for slack in _SLACK:
        count = min(_TIMES * count, len(trials.runner))
        found = ran((one.candidate for one in promising(found, slack)), count, "again")
    return found, tried


def cheaper(found: Iterable[Found], trials: Trials, plan: Found) -> list[Found]:
    """On all questions, the cheapest first: what lost hardly more than whatever is cheaper, up to the first that loses
    no more than the plan does."""
    ran: list[Found] = []
    for one in tqdm(list(promising(found, _SLACK_OF_ALL)), f"all, {plan.n} questions"):
        if one.candidate.share >= plan.candidate.share or (ran and ran[-1].misses <= plan.misses):
            break
        ran.append(Found(one.candidate, int(trials.losses(one.candidate.schedule, plan.n).sum()), plan.n))
    trials.save()
    return ran


def unseen(first: int) -> SampleSet:
    """All bundled questions that no calibration uses, those that come first drawn from one set."""
    sets = [load_samples(reference_path("easy_vqa") / f"{one}.jsonl") for one in ("test", "evaluation")]
    questions = dict.fromkeys([*sets[0].choose(first), *sets[0], *sets[1]])
    return SampleSet(tuple(questions), "bundled questions")


def promising(found: Iterable[Found], slack: int) -> Iterator[Found]:
    """Those that lose little, and at most so many more than every cheaper one."""
    best: float = math.inf
    for one in sorted(found, key=lambda one: (one.candidate.share, one.misses)):
        if one.misses <= min(_LOSES * one.n, best + slack):
            yield one
        best = min(best, one.misses)


def front(found: Iterable[Found]) -> Iterator[Found]:
    """Those that lose less than every cheaper one."""
    best = None
    for one in sorted(found, key=lambda one: (one.candidate.share, one.misses)):
        if best is None or one.misses < best:
            best = one.misses
            yield one


def report(plan_path: Path, profile: Profile, few: int, kept: Path) -> str:
    """The front, and the plan beside it, as Markdown."""
    spec = ModelSpec.from_config(profile.model.config)
    loaded = load(str(reference_path(profile.model.id.removeprefix("reference/"))))
    chosen = unseen(few * _TIMES ** len(_SLACK))
    encoder = Encoder(loaded.processor, identify(loaded.model, loaded.id).visual_ids)
    runner = LossRunner(Batches(chosen, encoder, loaded.model, 40), answer_tokens=4)
    space = Space(profile, Costing(spec, profile_workload(profile), Objective()))
    trials = Trials(runner, kept, {"samples": chosen.digest, "model": profile.model.id})
    shipped = load_plan(plan_path)
    plan = space.candidate(parse(str(shipped.decision.policy)))
    if plan is None:
        raise SystemExit(f"{plan_path} changes nothing: there is nothing to compare")
    of_some, ran = executed(space, trials, few, plan)
    of_plan = Found(plan, int(trials.losses(plan.schedule, len(chosen)).sum()), len(chosen))
    found = [*cheaper(of_some, trials, of_plan), of_plan]
    as_good = next(one for one in found if one.misses <= of_plan.misses)
    ratio = of_plan.candidate.share / as_good.candidate.share
    rounds = ", ".join(f"{few * _TIMES ** (number + 1):,}" for number in range(len(_SLACK)))
    searched = ""
    if shipped.evidence is not None and shipped.evidence.search is not None and shipped.evidence.parts is not None:
        executed_there, parts = shipped.evidence.search.executed, shipped.evidence.parts
        most = parts.propose.n + parts.select.n
        searched = f" The search behind the plan executed {executed_there} candidates on at most {most} questions."
    lines = [
        f"# What there is to be found for `{profile.model.id}`",
        "",
        f"The plan costs {ratio:.2f} times the cheapest of {ran:,} candidates that loses no more than the plan does.",
        "",
        f"Made by `python -m tests.brute_front`: all ran on {few} questions that no calibration uses; what lost hardly "
        f"more than whatever is cheaper, on {rounds}, and the cheapest {len(found) - 1} of these, up to one that loses "
        f"no more than the plan, on all {len(chosen):,}: {trials.passes:,} answers.{searched} Loss: whole answers that "
        "changed, with its 95 % interval. A loss that is the least of so many is lower than is to be expected on other "
        "questions.",
        "",
        "| policy | decoder FLOPs of dense | loss |",
        "|---|---|---|",
        *(one.row for one in front(found)),
        "",
        "The plan on the same questions:",
        "",
        "| policy | decoder FLOPs of dense | loss |",
        "|---|---|---|",
        of_plan.row,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--few", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    kept = given.out.with_suffix(".trials.json")
    write_atomic(given.out, report(given.plan, Profile.load(given.profile), given.few, kept))


if __name__ == "__main__":
    main()
