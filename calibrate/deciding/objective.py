"""What a plan should save, what it may cost, and which engine has to be able to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from planner.cost import Cost, cost
from planner.cost.formulas import DECODER_COMPONENTS
from planner.cost.hardware import hardware
from planner.cost.roofline import latency
from planner.engines import engine
from planner.errors import InputError
from planner.profile import Profile
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec
from planner.workload import Workload

Quantity = Literal["flops", "kv", "prefill-ms", "latency"]
#: Of --hardware: time the finalists on this machine in place of estimating.
MEASURED = "measured"
#: Milliseconds of a prefill, of many schedules on the machine at hand.
Timer = Callable[[list[Schedule]], list[float]]


@dataclass(frozen=True)
class Figures:
    """What one request costs.

    Attributes:
        flops: of the decoder, its head and selections in a prefill; the mean over `Objective.questions` about an image.
        kv_mb: the KV cache after the prefill, in 10^6 bytes.
        prefill_ms, latency_ms: time to the first token, and to the end of the answer; None without hardware.
        visual_tokens: mean over the decoder layers.
    """

    flops: float
    kv_mb: float
    visual_tokens: float
    prefill_ms: float | None = None
    latency_ms: float | None = None

    def of(self, quantity: Quantity) -> float:
        """The figure that an objective names.

        Raises:
            InputError: a time, and there is none.
        """
        found = {"flops": self.flops, "kv": self.kv_mb, "prefill-ms": self.prefill_ms, "latency": self.latency_ms}
        value = found[quantity]
        if value is None:
            raise InputError(f"{quantity} needs hardware", "Give --hardware, see `plan ls hardware`")
        return value


@dataclass(frozen=True)
class Objective:
    """What is minimised under which constraints.

    Attributes:
        minimise: the quantity of which a plan should need least.
        max_flops: largest share of the dense decoder FLOPs.
        max_kv_mb: largest KV cache after the prefill, in 10^6 bytes.
        max_latency_ms: longest time of a request, estimated for `hardware`, or the prefill measured here.
        hardware: a row of `plan ls hardware`, or `MEASURED`.
        portable: an engine that must be able to carry the plan (`planner.engines`).
        questions: asked about each image, on average. More than one counts on an image cache that answers all but the
            first (`planner.runtime.ImageCache`).
    """

    minimise: Quantity = "flops"
    max_flops: float | None = None
    max_kv_mb: float | None = None
    max_latency_ms: float | None = None
    hardware: str | None = None
    portable: str | None = None
    questions: int = 1

    def __post_init__(self) -> None:
        if self.minimise not in get_args(Quantity):
            raise InputError(f"'{self.minimise}' cannot be minimised", f"Choose {', '.join(get_args(Quantity))}")
        if self.portable is not None:
            engine(self.portable)  # refuses one that is not there
        if self.questions < 1:
            raise InputError(f"{self.questions} questions about an image make no sense", "Give 1 or more")
        for name in ("max_flops", "max_kv_mb", "max_latency_ms"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise InputError(f"{_option(name)} {bound:g} cannot be met", "Give a bound above 0")
        if self.max_flops is not None and self.max_flops > 1:
            raise InputError(
                f"--max-flops {self.max_flops:g} is more than the dense model needs",
                "It is a share of the dense decoder FLOPs: 0.3 for 30 %",
            )
        timed = self.minimise in ("prefill-ms", "latency") or self.max_latency_ms is not None
        if timed and self.hardware is None:
            raise InputError("a time needs hardware", "Give --hardware NAME (`plan ls hardware`) or measured")
        if self.hardware is not None and not self.measured:
            hardware(self.hardware)  # refuses a row that is not there before anything is measured

    @property
    def measured(self) -> bool:
        """Whether times are taken on this machine."""
        return self.hardware == MEASURED


@dataclass(frozen=True)
class Breach:
    """A constraint that a candidate does not meet.

    Attributes:
        constraint: as its option is called.
        bound, value: the largest allowed, and the candidate's.
    """

    constraint: str
    bound: float
    value: float

    @property
    def excess(self) -> float:
        """How far beyond, as a share of the bound."""
        return self.value / self.bound - 1

    def __str__(self) -> str:
        return f"{self.constraint} {self.bound:g} is exceeded by {self.value - self.bound:.3g}"


class Costing:
    """Figures of schedules under an objective.

    Args:
        spec: the model.
        workload: the mean prompt.
        timer: prefills on this machine; needed where the objective asks for measured times.
    """

    def __init__(self, spec: ModelSpec, workload: Workload, objective: Objective, timer: Timer | None = None) -> None:
        self.spec, self.workload, self.objective, self._timer = spec, workload, objective, timer
        row = None if objective.measured else objective.hardware
        self._hardware = None if row is None else hardware(row)
        self._timed: dict[Schedule, float] = {}

    @cached_property
    def dense(self) -> Figures:
        """What the model needs as it is."""
        return self.figures(dense(self.spec.layers))

    def figures(self, schedule: Schedule) -> Figures:
        """What a schedule needs."""
        found = cost(self.spec, self.workload, schedule)
        layers = found.visual_tokens_per_layer
        time = latency(found, self._hardware) if self._hardware is not None else None
        return Figures(
            flops=self._question_flops(schedule, _decoder(found)),
            kv_mb=found.kv_cache_bytes / 1e6,
            visual_tokens=sum(layers) / len(layers),
            prefill_ms=time.prefill_ms if time is not None else self._timed.get(schedule),
            latency_ms=time.total_ms if time is not None else self._timed.get(schedule),
        )

    def time(self, schedules: list[Schedule]) -> None:
        """Measure schedules that were not yet, beside the dense model, if the objective asks for that."""
        if not self.objective.measured or self._timer is None:
            return
        new = [one for one in dict.fromkeys([dense(self.spec.layers), *schedules]) if one not in self._timed]
        if new:
            self._timed.update(zip(new, self._timer(new), strict=True))
            self.__dict__.pop("dense", None)

    def share(self, figures: Figures) -> float:
        """The minimised quantity, as a share of dense. Where times are measured, FLOPs until they are."""
        quantity = self.objective.minimise
        if self.objective.measured and figures.prefill_ms is None:
            quantity = "flops"
        return figures.of(quantity) / self.dense.of(quantity)

    def breaches(self, figures: Figures) -> list[Breach]:
        """The constraints that are not met, as far as figures are known."""
        wanted = self.objective
        bounds = {
            "max_flops": (wanted.max_flops, figures.flops / self.dense.flops),
            "max_kv_mb": (wanted.max_kv_mb, figures.kv_mb),
            "max_latency_ms": (wanted.max_latency_ms, figures.latency_ms),
        }
        return [
            Breach(_option(name), bound, value)
            for name, (bound, value) in bounds.items()
            if bound is not None and value is not None and value > bound
        ]

    def _question_flops(self, schedule: Schedule, first: float) -> float:
        """Mean over the questions about an image: from the second on, the image stream of layers in which visual rows
        do not depend on the question is cached."""
        questions = self.objective.questions
        if questions == 1:
            return first
        cached = self.workload.model_copy(update={"image_stream_cached": True})
        return (first + (questions - 1) * decoder_flops(self.spec, cached, schedule)) / questions


def profile_workload(profile: Profile, output_tokens: int = 1) -> Workload:
    """The mean calibration prompt as a workload."""
    return Workload(**profile.prompt.model_dump(), output_tokens=output_tokens)


def decoder_flops(spec: ModelSpec, workload: Workload, schedule: Schedule) -> float:
    """Exact FLOPs of one prefill, decoder, head and selection only: the vision tower is the same for every plan."""
    return _decoder(cost(spec, workload, schedule))


def _decoder(found: Cost) -> float:
    return float(sum(found.prefill[name] for name in DECODER_COMPONENTS) + found.prefill["lm_head"])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
