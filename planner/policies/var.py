"""Visual attention redistribution (VAR, "See What You Are Told: Visual Attention Sink in Large Multimodal Models")."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from planner.errors import InputError
from planner.policies.base import Policy, check_layer
from planner.schedule import Redistribute, Schedule, Stage

if TYPE_CHECKING:
    from planner.profile import Profile
    from planner.spec import ModelSpec
    from planner.workload import Workload

_Share = Annotated[float, Field(ge=0, le=1)]
#: The paper's threshold, and the share of the largest possible value that narrow models get in its place.
TAU, CEILING_SHARE = 20.0, 0.83


def sink_threshold(hidden_size: int) -> float:
    """From which ``|x_d / RMS(x)|`` on a token is a sink: 20, as in the paper, or 0.83 of the largest possible value.

    The lesser of the two counts: no value can exceed ``sqrt(hidden_size)``, which the paper's comes near to or
    exceeds below a hidden size of 581.
    """
    return min(TAU, CEILING_SHARE * math.sqrt(hidden_size))


class VAR(Policy):
    """Attention on visual sink tokens moves to other visual tokens in image-centric heads. It saves nothing; it is
    about quality.

    Attributes:
        dims: the model's sink dimensions; ``auto`` takes those that calibration found from the profile.
        tau: from which value on a token is a sink; None for `sink_threshold`, as calibration has it.
        rho, p, min_visual: as `planner.schedule.Redistribute` says.
        first, last: layers ``[first, last)`` in which it happens; from layer 2 to all but the last by default.
    """

    name: ClassVar[str] = "var"
    summary: ClassVar[str] = "move attention from visual sinks to other visual tokens (quality, not speed)"
    budget: ClassVar[str] = "p"
    quality: ClassVar[bool] = True

    dims: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | Literal["auto"]
    tau: Annotated[float, Field(gt=0)] | None = None
    rho: _Share = 0.8
    p: _Share = 0.6
    min_visual: _Share = 0.2
    first: Annotated[int, Field(ge=0)] = 2
    last: Annotated[int, Field(ge=1)] | None = None

    def resolve(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> VAR:
        if self.dims != "auto":
            return self
        dims, tau = _found(profile)
        if not dims:
            raise InputError(
                "policy 'var': dims=auto needs the sink dimensions that calibration finds, and there are none",
                "Give a profile whose probe `sinks` found some, or give dims",
            )
        return self.model_copy(update={"dims": dims, "tau": tau if self.tau is None else self.tau})

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        if self.dims == "auto":
            return self.resolve(spec, workload, profile).schedule(spec)
        last = self.last if self.last is not None else spec.layers - 1
        check_layer(self.name, "last", last - 1, spec.layers)
        check_layer(self.name, "first", self.first, last)
        for dim in self.dims:
            check_layer(self.name, "dims", dim, spec.hidden_size)
        tau = sink_threshold(spec.hidden_size) if self.tau is None else self.tau
        rule = Redistribute(sink_dims=self.dims, tau=tau, rho=self.rho, p=self.p, min_visual=self.min_visual)
        stages = [Stage(first=self.first, last=last, redistribute=rule)]
        if self.first:
            stages.insert(0, Stage(first=0, last=self.first))
        if last < spec.layers:
            stages.append(Stage(first=last, last=spec.layers))
        return Schedule(stages=tuple(stages))

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[VAR]:
        """The sink dimensions that calibration found, with several rho and p."""
        dims, tau = _found(profile)
        for rho in (0.5, 0.8) if dims else ():
            yield from (cls(dims=dims, tau=tau, rho=rho, p=p) for p in (0.3, 0.6, 0.9))


def _found(profile: Profile | None) -> tuple[tuple[int, ...], float | None]:
    """The sink dimensions that calibration found, and its threshold; none where it found none or was not asked."""
    sinks = None if profile is None else profile.probes.get("sinks")
    if sinks is None or not sinks.values["sink_dims"]:
        return (), None
    return tuple(sinks.values["sink_dims"]), float(sinks.values["tau"])
