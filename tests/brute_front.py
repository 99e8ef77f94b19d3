"""What there is to be found: everything that is proposed for a bundled model, and what it makes together, all executed.

    python -m tests.brute_front --profile windowed-calibration/profile.json --out reports/reference/windowed/front.md

No search, no giving up: every member of every family, and every composition of members on a coarser grid, runs on the
same questions, which no calibration uses. The front is of cost and mean loss. A run that was interrupted goes on from
the file beside --out.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
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
from calibrate.inputs.samples import load_samples
from calibrate.probes.stats import proportion
from calibrate.running.losses import LossRunner
from planner.profile import Profile
from planner.spec import ModelSpec

#: Of each family, every second member is laid over every third of another kind, in the cheaper half of what there is.
_OVER, _FIXED, _CHEAPEST_SHARE = 2, 3, 0.5


def candidates(space: Space) -> list[Candidate]:
    """All that is executed, each policy once, the cheapest first."""
    alone = [one for family in space.families for one in family.members]
    found = {one.schedule: one for one in (*alone, *_together(space))}
    return sorted(found.values(), key=lambda one: one.share)


def _together(space: Space) -> Iterator[Candidate]:
    for family, other in itertools.permutations(space.families, 2):
        coarse = Family(family.name, family.members[::_OVER])
        for fixed in other.members[::_FIXED]:
            made = space.together(coarse, fixed)
            if made is not None:
                yield from (one for one in made.members if one.share < _CHEAPEST_SHARE)


def report(profile: Profile, samples: int, kept: Path) -> str:
    """The front as Markdown."""
    spec = ModelSpec.from_config(profile.model.config)
    loaded = load(str(reference_path(profile.model.id.removeprefix("reference/"))))
    chosen = load_samples(reference_path("easy_vqa") / "test.jsonl").choose(samples)
    encoder = Encoder(loaded.processor, identify(loaded.model, loaded.id).visual_ids)
    runner = LossRunner(Batches(chosen, encoder, loaded.model, 16), answer_tokens=4)
    space = Space(profile, Costing(spec, profile_workload(profile), Objective()))
    trials = Trials(runner, kept, {"samples": chosen.digest, "model": profile.model.id})
    everyone = candidates(space)
    rows, best = [], 1.1
    for one in tqdm(everyone):
        losses = trials.losses(one.schedule, len(chosen))
        if losses.mean() < best:
            best = float(losses.mean())
            seen = proportion(int(losses.sum()), len(losses))
            rows.append(
                f"| {one.name} | {one.share:.3f} | {seen['value']:.3f} ({seen['low']:.3f}-{seen['high']:.3f}) |"
            )
    trials.save()
    lines = [
        f"# What there is to be found for `{profile.model.id}`",
        "",
        f"Made by `python -m tests.brute_front`: {len(everyone)} candidates on {len(chosen)} questions that no "
        "calibration uses. Loss: whole answers that changed, with its 95 % interval. A loss that is the least of so "
        "many is lower than is to be expected on other questions.",
        "",
        "| policy | decoder FLOPs of dense | loss |",
        "|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.write_text(report(Profile.load(given.profile), given.samples, given.out.with_suffix(".trials.json")))


if __name__ == "__main__":
    main()
