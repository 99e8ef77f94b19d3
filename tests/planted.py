"""Planted truths: worlds in which every schedule's expected loss is known, for tests and simulations of a decision.

A world is a population of questions. Each question has, for every way to drop tokens, a strength at which it loses its
answer; strengths of different ways go together as `likeness` says. Samples are drawn from the population with
replacement, so that the expected loss of a schedule is its mean loss over the population, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from calibrate.deciding.decide import Certify, ChosenPlan, Effort, decide
from calibrate.deciding.demand import Demand
from calibrate.deciding.objective import Costing, Objective, profile_workload
from calibrate.deciding.search import Search
from calibrate.deciding.space import Space
from calibrate.deciding.split import sizes
from calibrate.deciding.trials import Trials
from calibrate.probes.stats import proportion
from planner.evidence import LossName
from planner.policies import parse
from planner.profile import ModelIdentity, ProbeResult, Profile, PromptShape, SampleIdentity
from planner.schedule import Count, Schedule, Select, kept
from planner.spec import ModelSpec

POPULATION = 20_000
LAYERS, VISUAL = 10, 144
CONFIG = {
    "model_type": "llava",
    "image_token_index": 3,
    "vision_feature_layer": -1,
    "text_config": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 60, "patch_size": 5,
    },
}  # fmt: skip
SPEC = ModelSpec.from_config(CONFIG)
#: Half of the answers are lost at this dose (a share of the tokens, or a depth), and how steeply.
Fall = tuple[float, float]


def curve(first: int, values: list[float], n: int = 100) -> dict[str, object]:
    """A masking curve as a profile holds it."""
    return {
        "k": list(range(first, first + len(values))),
        "agreement": [proportion(round(value * n), n) for value in values],
    }


def planted_profile(alone: int = 3, exit_layer: int = 7, least: int = VISUAL) -> Profile:
    """Of a model in which text may be blind in ``[0, alone)``, and the image may be dropped from `exit_layer` on, as
    its curves say; influence says nonsense."""
    curves = {
        "alone_before": curve(1, [1.0] * alone + [0.5] * (LAYERS - alone)),
        "masked_from": curve(0, [0.5] * exit_layer + [1.0] * (LAYERS - exit_layer)),
    }
    lengths = {"value": VISUAL, "least": least, "most": VISUAL}
    text = {"value": 10, "least": 10, "most": 10}
    influence = {
        "suggested": {"0.5": {"filter": 0, "keep": 5, "exit": 2}},
        "stages": {"0.995": {"absolute": {"never_filtered": 3}}},
    }
    return Profile(
        model=ModelIdentity(
            id="m", family="llava", config=CONFIG, config_digest=SPEC.digest, layers=LAYERS, hidden_size=64,
            image_token_id=3,
        ),
        samples=SampleIdentity(digest="s", n=4, source="s.jsonl"),
        prompt=PromptShape(visual_tokens=VISUAL, text_tokens=10, system_tokens=4),
        processor={},
        probes={
            "prompt": ProbeResult(n=4, settings={}, values={"visual": lengths, "text": text}),
            "influence": ProbeResult(n=4, settings={"filter_cos": [0.995]}, values=influence),
            "masking": ProbeResult(n=4, settings={}, values=curves),
        },
        environment={},
        created_with="test",
    )  # fmt: skip


@dataclass(frozen=True)
class World:
    """A planted truth.

    Attributes:
        entry, inner: by score, how answers fall with the share of tokens that are left; "" for other scores.
        exit: with the layer from which on no visual token is left.
        blind: with the number of layers in which text does not see the image.
        any_change: share of the population that every change at all costs its answer.
        likeness: correlation of the strengths at which a question falls to different ways of dropping.
    """

    name: str
    entry: Mapping[str, Fall] = field(default_factory=lambda: {"": (0.1, 3.0)})
    inner: Mapping[str, Fall] = field(default_factory=lambda: {"": (0.04, 3.0)})
    exit: Fall = (5.5, 5.0)
    blind: Fall = (5.0, 5.0)
    any_change: float = 0.0
    likeness: float = 0.5
    seed: int = 0

    def population(self) -> Population:
        """The questions."""
        return Population(self)


class Population:
    """Losses of schedules on all questions of a world, each computed once."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = np.random.default_rng(world.seed)
        self._common = rng.standard_normal(POPULATION)
        self._own: dict[str, NDArray[np.float64]] = {}
        self._losses: dict[Schedule, NDArray[np.bool_]] = {}

    def losses(self, schedule: Schedule) -> NDArray[np.bool_]:
        """Which questions lose their answer."""
        if schedule not in self._losses:
            lost = np.zeros(POPULATION, bool)
            for way, share in self._ways(schedule):
                lost |= self._strength(way) < share
            self._losses[schedule] = lost
        return self._losses[schedule]

    def expected(self, schedule: Schedule) -> float:
        """The expected loss of one sample."""
        return float(self.losses(schedule).mean())

    def _strength(self, way: str) -> NDArray[np.float64]:
        """Uniform over the population, and like those of other ways."""
        if way not in self._own:
            own = np.random.default_rng([self.world.seed, *way.encode()]).standard_normal(POPULATION)
            alike = self.world.likeness
            found: NDArray[np.float64] = norm.cdf(np.sqrt(alike) * self._common + np.sqrt(1 - alike) * own)
            self._own[way] = found
        return self._own[way]

    def _ways(self, schedule: Schedule) -> Iterator[tuple[str, float]]:
        """How a schedule drops, and what share of the population would lose its answer by that alone."""
        world, present = self.world, float(VISUAL)
        yield "any", 0.0 if schedule.empty else world.any_change
        if schedule.entry is not None:
            present = float(kept(schedule.entry.keep, present))
            yield f"entry {schedule.entry.rank_by}", _fall(world.entry, schedule.entry, present)
        blind = sum(stage.last - stage.first for stage in schedule.stages if stage.text_to_visual != "full")
        alone = sum(stage.last - stage.first for stage in schedule.stages if stage.visual_attention == "self")
        if max(blind, alone):
            middle, slope = world.blind
            yield "blind", float(expit(slope * (max(blind, alone) - middle)))
        for stage in schedule.stages:
            for select in stage.selects:
                if isinstance(select.keep, Count) and select.keep.count == 0:
                    middle, slope = world.exit
                    yield "exit", float(expit(-slope * (stage.last - middle)))
                    return
                present = float(kept(select.keep, present))
                yield f"inner {select.rank_by}", _fall(world.inner, select, present)


def _fall(falls: Mapping[str, Fall], select: Select, present: float) -> float:
    middle, slope = falls.get(select.rank_by, falls[""])
    return float(expit(-slope * (np.log(present / VISUAL) - np.log(middle))))


class Drawn:
    """A sample of a population, as the decision's runner.

    Attributes:
        executed: schedules, and on how many samples.
    """

    def __init__(self, population: Population, n: int, rng: np.random.Generator) -> None:
        self.population, self.ids = population, rng.integers(POPULATION, size=n)
        self.refusals: list[str] = []
        self.executed: list[tuple[Schedule, int]] = []

    loss: LossName = "answer"
    binary = True

    def __len__(self) -> int:
        return len(self.ids)

    def losses(self, schedule: Schedule, indices: list[int] | None = None) -> NDArray[np.float64]:
        chosen = self.ids if indices is None else self.ids[indices]
        self.executed.append((schedule, len(chosen)))
        return self.population.losses(schedule)[chosen].astype(np.float64)


def decided(
    population: Population,
    samples: int,
    rng: np.random.Generator,
    demand: Demand | None = None,
    objective: Objective | None = None,
    effort: Effort | None = None,
    space: Space | None = None,
    profile: Profile | None = None,
) -> ChosenPlan:
    """The real decision on samples of a population, split as a calibration splits them."""
    demand = demand or Demand()
    propose, select, certify = sizes(samples, demand.limit, demand.confidence)
    search, proving = (Drawn(population, n, rng) for n in (propose + select, certify))
    return decide(
        profile or planted_profile(),
        SPEC,
        Trials(search),
        Certify(proving, tuple(range(certify))),
        demand,
        objective,
        effort,
        space,
    )


PROFILE = planted_profile()
WORKLOAD = profile_workload(PROFILE)
#: A world in which much may be dropped.
EASY = World("easy", entry={"": (0.03, 4.0)}, inner={"": (0.1, 4.0)}, exit=(6.5, 20.0))


def made(policy: str) -> Schedule:
    """The schedule of a policy."""
    return parse(policy).schedule(SPEC, WORKLOAD)


def planted_space() -> Space:
    """What may be planned for the planted profile."""
    return Space(PROFILE, Costing(SPEC, WORKLOAD, Objective()))


def searched(space: Space, world: World, samples: int = 40, measure: int = 160, seed: int = 0) -> Search:
    """A search on samples of a world, under a limit of 0.02, for a proof that allows 1 of 149 to lose."""
    drawn = Drawn(world.population(), samples, np.random.default_rng(seed))
    search = Search(space, Trials(drawn), 0.02, measure, 149, 1)
    search.run()
    return search
