"""What of a plan vLLM can carry: a selection before the decoder, of a picture by itself, of a number known beforehand.

vLLM reserves the places of image tokens before it encodes the picture, encodes it without seeing the prompt, and keeps
what it encoded for any prompt with that picture. It has one slot of KV cache for a token, in all layers.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

from planner.errors import PlanError
from planner.plan import Plan, load_plan
from planner.schedule import ENCODER_SCORES, Select, Threshold, kept
from planner.vllm_plugin.architectures import families, of_family

#: Rankings that a picture by itself does not allow, and why.
_BARRED = {
    "none": "no token stays, so that there is nothing to serve: leave the picture out of the request",
    "determinantal": "relevance depends on the question, and vLLM encodes a picture before it sees one",
    "frame_change": "it is for videos, for which vLLM has --video-pruning-rate and --video-pruning-method evs",
    "frame_uniqueness": "it is for videos, for which vLLM has --video-pruning-rate and --video-pruning-method vidcom2",
}
_ELSEWHERE = "Run it on transformers (`plan.apply`), or make a plan that drops tokens before the decoder"


@dataclass(frozen=True)
class Carried:
    """A plan that vLLM carries.

    Attributes:
        plan: the plan.
        select: its selection before the decoder.
        differences: what is not as the plan was measured.
    """

    plan: Plan
    select: Select
    differences: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the plan: what tells its pictures from another plan's in vLLM's caches."""
        return self.plan.plan_sha256

    @property
    def policy(self) -> str:
        """As it is spelled."""
        return self.plan.decision.policy

    def check(self, config: Any) -> None:
        """Refuse a model that the plan was not made for. Weights are not compared: vLLM fuses them.

        Args:
            config: its transformers configuration.

        Raises:
            PlanMismatchError: naming the first fact that differs.
        """
        self.plan.check(config.to_dict())


@functools.cache
def carried(path: str) -> Carried | None:
    """The plan in a file, as far as vLLM carries it; None for the dense plan.

    Raises:
        InputError: the file cannot be read.
        PlanError: it is no plan, or vLLM cannot carry it; the message names what it cannot.
    """
    plan = load_plan(path)
    schedule, entry = plan.decision.schedule, plan.decision.schedule.entry
    if schedule.empty:
        return None
    if not schedule.before_decoder or entry is None:
        raise _refused(plan, "it acts inside the decoder, where vLLM has one KV slot for a token in all layers")
    if schedule.cost_only:
        raise _refused(plan, f"it {' and '.join(schedule.cost_only)}, which can be costed alone")
    known = of_family(plan.model.family)
    if known is None:
        raise _refused(plan, f"the family {plan.model.family} is not covered ({', '.join(families())} are)")
    if entry.rank_by in _BARRED:
        raise _refused(plan, f"rank_by '{entry.rank_by}': {_BARRED[entry.rank_by]}")
    if entry.rank_by in ENCODER_SCORES and not known.attention:
        raise _refused(plan, f"the attention in {plan.model.family}'s vision encoder is not followed to its tokens")
    if isinstance(entry.keep, Threshold):
        raise _refused(plan, "how many tokens reach a threshold is known after encoding, and vLLM must know it before")
    if not kept(entry.keep, sys.maxsize):
        raise _refused(plan, _BARRED["none"])
    if entry.merge == "pixels" and known.axes:
        raise _refused(plan, "a smaller picture is asked for with vLLM's own --mm-processor-kwargs")
    if known.axes and schedule.positions == "packed":
        raise _refused(plan, f"{plan.model.family} places tokens on several axes, where nothing can be packed")
    return Carried(plan, entry, tuple(_differences(plan, entry, known.axes)))


def _differences(plan: Plan, entry: Select, axes: bool) -> list[str]:
    found = []
    if not axes and plan.decision.schedule.positions == "original":
        found.append(
            "it was measured with original positions, and vLLM packs what is left: what it promises was not measured "
            "so. Calibrate with positions=packed"
        )
    if entry.per == "prompt":
        found.append("its budget is a prompt's, so prompts with several pictures are refused (per=picture takes them)")
    return found


def _refused(plan: Plan, why: str) -> PlanError:
    return PlanError(f"vLLM cannot carry the plan '{plan.decision.policy}' for {plan.model.id}: {why}", _ELSEWHERE)
