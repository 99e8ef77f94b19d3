"""Context pruning ("Rethinking Visual Dependency in Long-Context Reasoning for Large Vision-Language Models")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from planner.context_rate import RateFit
from planner.errors import InputError
from planner.policies.base import Policy, check_layer
from planner.schedule import Fraction, Schedule, Select, Stage, dense

if TYPE_CHECKING:
    from planner.profile import Profile
    from planner.spec import ModelSpec
    from planner.workload import Workload

#: Last text tokens that may be question and role tokens, where no prompt is short enough to tell.
_QUESTIONS = (16, 32, 64, 128)
#: How the context probe names the layers that the paper prunes over, in models of 32 layers.
_MEASURED_LAYERS = "10 of 32"


class Context(Policy):
    """Over the first `layers` layers the share `rate` of the context's text tokens is dropped, in equal steps;
    visual tokens stay.

    Attributes:
        layers: over how many layers.
        rate: share of the context dropped in all, not per layer. ``auto`` takes the best rate for the workload's
            context length from the profile's context probe, over the layers it was measured with.
        protect: last text tokens (question and role tokens) that stay; by default what the workload does not call
            context.
    """

    name: ClassVar[str] = "context"
    summary: ClassVar[str] = "drop the text context that receives least attention, step by step"
    budget: ClassVar[str] = "rate"
    quality: ClassVar[bool] = True

    layers: Annotated[int, Field(ge=1)] = 10
    rate: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = 0.3
    protect: Annotated[int, Field(ge=1)] | None = None

    def resolve(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Context:
        protect = self.protect
        if protect is None and workload is not None:
            protect = max(1, workload.text_tokens - workload.context_tokens)
        settled: dict[str, Any] = {} if protect is None else {"protect": protect}
        if self.rate == "auto":
            fit, layers = _measured(profile)
            if "layers" in self.model_fields_set and self.layers != layers:
                raise InputError(
                    f"policy 'context': rate=auto was measured over the first {layers} layers, not {self.layers}",
                    "Leave layers out, or give the rate",
                )
            tokens = 0 if workload is None or protect is None else workload.text_tokens - protect
            if tokens <= 0:
                raise InputError(
                    "policy 'context': rate=auto depends on the length of the context, and there is none",
                    "Give --context-tokens",
                )
            settled |= {"layers": layers, "rate": fit.rate(tokens)}
        return self.model_copy(update=settled)

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        settled = self.resolve(spec, workload, profile)
        if settled.protect is None:
            raise InputError(
                "policy 'context' cannot tell the context from the question",
                "Give protect: how many last text tokens stay",
            )
        return settled._schedule(spec, float(settled.rate), settled.protect)

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[Context]:
        """Around the rate that was measured to be best for the prompts' mean context. What the shortest prompt has is
        taken for question and role tokens, or less: it may be long itself, as where all prompts hold a document."""
        probe = profile.probes.get("context")
        if probe is None or "fit" not in probe.values or "none" in probe.values["fit"]:
            return
        least = max(1, round(profile.probes["prompt"].values["text"]["least"]))
        fit, layers = _measured(profile)
        for protect in (*(count for count in _QUESTIONS if count < least), least):
            context = profile.prompt.text_tokens - protect
            best = fit.rate(context) if context > 0 else 0.0
            for rate in sorted({round(best * share, 3) for share in (0.5, 1.0, 1.5)}):
                if 0 < rate < 1:
                    yield cls(layers=layers, rate=rate, protect=protect)

    def _schedule(self, spec: ModelSpec, rate: float, protect: int) -> Schedule:
        check_layer(self.name, "layers", self.layers, spec.layers)
        if rate == 0:
            return dense(spec.layers)
        stages = []
        for layer in range(self.layers):
            before, after = 1 - rate * layer / self.layers, 1 - rate * (layer + 1) / self.layers
            keep = Fraction(fraction=after / before)
            select = Select(rank_by="attention_received", keep=keep, of="context", protect=protect)
            stages.append(Stage(first=layer, last=layer + 1, selects=(select,)))
        return Schedule(stages=(*stages, Stage(first=self.layers, last=spec.layers)))


def _measured(profile: Any) -> tuple[RateFit, int]:
    """The fit of a profile's context probe, and over how many layers it was measured.

    Raises:
        InputError: there is no profile, or none with such a fit.
    """
    remedy = "Make a profile with `plan calibrate --probes ...,context`, or give the rate"
    if profile is None:
        raise InputError("policy 'context': rate=auto is read from a profile, and none was given", remedy)
    probe = profile.probes.get("context")
    if probe is None or not probe.values:
        raise InputError("policy 'context': rate=auto needs the context probe, which the profile lacks", remedy)
    fit = probe.values["fit"]
    if "none" in fit:
        raise InputError(f"policy 'context': the profile has no rate to take ({fit['none']})", remedy)
    return RateFit.from_json(fit), int(probe.values["layers"][_MEASURED_LAYERS])
