"""Targets of a report: a shipped model, a configuration, a profile or a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.files import is_file, parse_json, read_text
from planner.schedule import Schedule
from planner.spec import ModelSpec, shipped, shipped_model
from planner.spec.images import encode
from planner.workload import Workload

#: An ordinary picture, for families whose token count follows the image's size.
ORDINARY_PICTURE = (640, 480)


@dataclass(frozen=True)
class Target:
    """A model to report on.

    Attributes:
        name: as tables show it.
        spec: its facts.
        prompt: token counts to assume where the user gives none, as `Workload` fields.
        plans: spelling and schedule of policies the target brings along.
        profile: what calibration found, for policies that read it.
    """

    name: str
    spec: ModelSpec
    prompt: dict[str, Any] = field(default_factory=dict)
    plans: tuple[tuple[str, Schedule], ...] = ()
    profile: Any = None


def read_target(text: str) -> Target:
    """A target by name or path.

    Raises:
        InputError: there is none, or it cannot be read.
        PlanError: a plan or profile that was changed, or is of a newer schema.
    """
    if text in shipped():
        entry = shipped_model(text)
        return Target(text, ModelSpec.from_config(text), {"visual_tokens": entry["visual_tokens"]})
    kind = _document_kind(Path(text))
    if kind == "plan":
        return _plan(text)
    if kind == "profile":
        return _profile(text)
    spec = ModelSpec.from_config(text)
    return Target(spec.name or text, spec, {"visual_tokens": _visual_tokens(spec)})


def _document_kind(path: Path) -> str:
    """``plan``, ``profile``, or nothing: a configuration, or what `ModelSpec.from_config` will refuse."""
    if not is_file(path):
        return ""
    try:
        values = parse_json(read_text(path), str(path), InputError, "")
    except InputError:
        return ""
    names = values if isinstance(values, dict) else {}
    return "plan" if "plan_sha256" in names else "profile" if "profile_sha256" in names else ""


def _plan(path: str) -> Target:
    from planner.plan import load_plan

    plan = load_plan(path)
    spec = ModelSpec.from_config(plan.model.config)
    prompt: dict[str, Any] = {"visual_tokens": _visual_tokens(spec)}
    if plan.prediction:
        prompt = plan.prediction[0].workload.model_dump(exclude_defaults=True)
    return Target(plan.model.id, spec, prompt, ((plan.decision.policy, plan.decision.schedule),))


def _profile(path: str) -> Target:
    from planner.profile import Profile

    profile = Profile.load(path)
    return Target(
        profile.model.id, ModelSpec.from_config(profile.model.config), profile.prompt.model_dump(), profile=profile
    )


def _visual_tokens(spec: ModelSpec) -> int:
    return encode(spec, *ORDINARY_PICTURE).visual_tokens if spec.images is not None else 0


def asked_workload(target: Target, images: tuple[tuple[int, int], ...], given: dict[str, Any]) -> Workload:
    """The workload of a report: what the user gave, else what the target suggests, else the defaults.

    Args:
        images: ``(width, height)`` in pixels; they decide the visual tokens.
        given: `Workload` fields the user gave.

    Raises:
        InputError: invalid sizes.
    """
    values = {**target.prompt, **given}
    if images:
        counts = [encode(target.spec, width, height).visual_tokens for width, height in images]
        values |= {"visual_tokens": sum(counts), "images": images}
    elif "visual_tokens" in given:
        values.pop("images", None)
    return Workload.of(**values)
