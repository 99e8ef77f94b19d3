"""What decisions are worth on the bundled models: the real `decide`, on draw after draw of real questions.

    python -m tests.repeat_decisions windowed plain --out reports/decision-models.md

Each run draws its samples from all questions that are bundled, one of a picture, and decides as a calibration does,
with the committed profile. What the shipped plan truly loses is measured on the questions about all other pictures.
Answers do not depend on the draw: a schedule runs once on a question, whatever runs ask for it, and what was found lies
in files beside --out, from which an interrupted command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from tqdm import tqdm

from calibrate.deciding.decide import Certify, decide
from calibrate.deciding.demand import Demand
from calibrate.deciding.objective import Costing, Objective, profile_workload
from calibrate.deciding.space import Space
from calibrate.deciding.split import sizes
from calibrate.deciding.trials import Trials
from calibrate.inputs.batches import Batch, Batches
from calibrate.inputs.bundled import reference_path
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import identify
from calibrate.inputs.load import load
from calibrate.inputs.samples import SampleSet, load_samples
from calibrate.running.losses import LossRunner
from planner.bundled import bundled
from planner.document import digest, write_atomic
from planner.evidence import LossName
from planner.profile import Profile
from planner.schedule import Schedule
from planner.spec import ModelSpec

FloatArray = NDArray[np.float64]
DEMAND = Demand()
RUNS, SIZES = 10, (256, 512)
_SETS = ("calibration", "evaluation", "test")
_BATCH, _ANSWER_TOKENS = 64, 4
_UNKNOWN = -1.0


class Encoded(Batches):
    """Batches of any samples of a set, which is encoded once."""

    def __init__(self, samples: SampleSet, encoder: Encoder, model: object, batch_size: int) -> None:
        super().__init__(samples, encoder, model, batch_size)
        self._whole = self.place(encoder(tuple(samples)))

    def of(self, ids: tuple[int, ...]) -> Batch:
        rows = {name: value[list(ids)] for name, value in self._whole.items()}
        return Batch(ids, tuple(self.samples[i] for i in ids), rows, self.model, self.encoder, self.samples)


class Pool:
    """All bundled questions, and what schedules lose on them.

    Args:
        path: where losses are kept.
    """

    def __init__(self, name: str, path: Path) -> None:
        loaded = load(str(reference_path(name)))
        sets = [load_samples(reference_path("easy_vqa") / f"{one}.jsonl") for one in _SETS]
        self.samples = SampleSet(tuple(sample for one in sets for sample in one), "bundled questions")
        encoder = Encoder(loaded.processor, identify(loaded.model, loaded.id).visual_ids)
        batches = Encoded(self.samples, encoder, loaded.model, _BATCH)
        self.runner = LossRunner(batches, answer_tokens=_ANSWER_TOKENS)
        self._path, self._run = path, digest([name, self.samples.digest])
        self._kept: dict[str, FloatArray] = {}
        if path.exists():
            with np.load(path) as file:
                if str(file["run"]) == self._run:
                    self._kept = dict(zip(file["names"].tolist(), file["losses"].astype(np.float64), strict=True))
        pictures: dict[bytes, list[int]] = {}
        for i, sample in enumerate(self.samples):
            pictures.setdefault(sample.image_digests[0], []).append(i)
        self.pictures = list(pictures.values())

    def losses(self, schedule: Schedule, ids: Sequence[int]) -> FloatArray:
        """Of some questions."""
        found = self._kept.setdefault(digest(schedule.model_dump(mode="json")), np.full(len(self.samples), _UNKNOWN))
        if missing := [i for i in ids if found[i] == _UNKNOWN]:
            found[missing] = self.runner.losses(schedule, missing)
        return found[list(ids)]

    def save(self) -> None:
        """Write what is known."""
        names = list(self._kept)
        losses = np.array([self._kept[name] for name in names]).astype(np.int8)
        part = self._path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(file, run=self._run, names=names, losses=losses)
        part.replace(self._path)


class Drawn:
    """Some questions of a pool, as a decision's runner."""

    loss: LossName = "answer"
    binary = True

    def __init__(self, pool: Pool, ids: Sequence[int]) -> None:
        self.pool, self.ids = pool, list(ids)
        self.refusals: list[str] = []

    def __len__(self) -> int:
        return len(self.ids)

    def losses(self, schedule: Schedule, indices: list[int] | None = None) -> FloatArray:
        """As `calibrate.deciding.trials.Losses`."""
        ids = self.ids if indices is None else [self.ids[i] for i in indices]
        return self.pool.losses(schedule, ids)


@dataclass(frozen=True)
class Outcome:
    """A shipped plan: what it costs, and how many questions about other pictures lose their answers."""

    share: float
    misses: int
    n: int

    @property
    def loss(self) -> float:
        """Share of them."""
        return self.misses / self.n


def decided(pool: Pool, space: Space, samples: int, number: int) -> Outcome:
    """One calibration.

    Args:
        samples: in all; the real split divides them.
        number: of the run, which says what is drawn.
    """
    order = np.random.default_rng([samples, number]).permutation(len(pool.pictures))
    drawn = [pool.pictures[i][0] for i in order[:samples]]
    others = [one for i in order[samples:] for one in pool.pictures[i]]
    propose, select, certify = sizes(samples, DEMAND.limit, DEMAND.confidence)
    search, proving = Drawn(pool, drawn[: propose + select]), Drawn(pool, drawn[propose + select :])
    proof = Certify(proving, tuple(range(certify)))
    plan = decide(space.profile, space.costing.spec, Trials(search), proof, DEMAND, space=space)
    share = space.costing.share(space.costing.figures(plan.schedule))
    lost = 0 if plan.schedule.empty else int(pool.losses(plan.schedule, others).sum())
    return Outcome(share, lost, len(others))


def row(model: str, samples: int, outcomes: Sequence[Outcome]) -> str:
    """Of the table."""
    shares, losses = np.array([one.share for one in outcomes]), np.array([one.loss for one in outcomes])
    above, runs = int((losses > DEMAND.limit).sum()), len(outcomes)
    chance = binom.sf(above - 1, runs, 1 - DEMAND.confidence)
    cells = (
        model, f"{samples:,}", f"{runs}", f"{shares.mean():.3f}", f"{shares.min():.3f} to {shares.max():.3f}",
        f"{(shares == 1).sum()}", f"{losses.mean():.4f}", f"{above}", f"{chance:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(found: dict[tuple[str, int], list[Outcome]]) -> str:
    """All models and sizes as Markdown."""
    head = (
        "model", "samples", "runs", "decoder FLOPs, mean", "from, to", "dense", "loss, mean", "above the limit",
        "by chance",
    )  # fmt: skip
    said = (
        f"Made by `python -m tests.repeat_decisions`: an agreement of {DEMAND.agreement:g} with confidence "
        f"{DEMAND.confidence:g}, decided on draw after draw of bundled questions; the loss of each plan is measured on "
        "those about pictures that it was not drawn from. Decoder FLOPs of the shipped plan are shares of dense, which "
        f"is shipped where nothing is proven. The promise: at most {1 - DEMAND.confidence:.0%} of runs ship a plan "
        f"that loses more than {DEMAND.limit:.2f}. *By chance*: how often so many runs or more do, where that share is "
        "to be expected."
    )
    rows = [row(model, samples, outcomes) for (model, samples), outcomes in found.items()]
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]
    return "\n".join(["# What decisions are worth on the bundled models", "", said, "", *table]) + "\n"


def space_of(name: str) -> Space:
    """What may be planned for a bundled model."""
    profile = Profile.load(bundled(f"reference/{name}", "profile"))
    spec = ModelSpec.from_config(profile.model.config)
    return Space(profile, Costing(spec, profile_workload(profile), Objective()))


def main() -> None:
    """Write the report after every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--samples", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found: dict[tuple[str, int], list[Outcome]] = {}
    for name in given.models:
        pool, space = Pool(name, given.out.with_suffix(f".{name}.npz")), space_of(name)
        for samples in given.samples:
            for number in tqdm(range(given.runs), f"{name}, {samples}"):
                found.setdefault((name, samples), []).append(decided(pool, space, samples, number))
                pool.save()
                write_atomic(given.out, report(found))


if __name__ == "__main__":
    main()
