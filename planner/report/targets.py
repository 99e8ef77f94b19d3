"""Targets of a report: a shipped model, a configuration, a profile or a plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.files import document_in, is_file, parse_json, read_text
from planner.hub import local
from planner.report.hub import hub_folder, is_hub_id
from planner.schedule import Schedule
from planner.spec import ModelSpec, shipped, shipped_model
from planner.spec.facts import Marks
from planner.spec.images import encode, encode_all, mark_tokens
from planner.spec.processor import limited
from planner.spec.video import encode_video, sampled_frames
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


def read_target(text: str, max_pixels: int | None = None, decoder_only: bool = False) -> Target:
    """A target by name or path.

    Args:
        max_pixels: limit on an image's pixels in place of the processor's.
        decoder_only: its text decoder alone, which may stand behind a tower or a projector that is not known.

    Raises:
        InputError: there is none, it cannot be read, or it has no such limit.
        PlanError: a plan or profile that was changed, or is of a newer schema.
    """
    if decoder_only:
        return _decoder(text)
    target = _found(text)
    if max_pixels is None or target.spec.images is None:
        return target
    spec = dataclasses.replace(target.spec, images=limited(target.spec.images, max_pixels))
    return dataclasses.replace(target, spec=spec, prompt={**target.prompt, "visual_tokens": _visual_tokens(spec)})


def _decoder(text: str) -> Target:
    """Visual tokens are those that the user gives, or none."""
    from planner.spec.read import read_alone

    spec = read_alone(hub_folder(text) if is_hub_id(text) else text)
    name = f"{text if is_hub_id(text) or not spec.name else spec.name}, text decoder"
    return Target(name, dataclasses.replace(spec, name=name), {"visual_tokens": 0})


def _found(text: str) -> Target:
    if text in shipped():
        entry = shipped_model(text)
        return Target(text, ModelSpec.from_config(text), {"visual_tokens": entry["visual_tokens"]})
    text = str(document_in(local(text)))
    kind = _document_kind(Path(text))
    if kind == "plan":
        return _plan(text)
    if kind == "profile":
        return _profile(text)
    if is_hub_id(text):
        spec = dataclasses.replace(ModelSpec.from_config(hub_folder(text)), name=text)
    else:
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


#: Width, height, frames, and frames a second where the processor is to choose among them.
Video = tuple[int, int, int, float | None]


def asked_workload(
    target: Target,
    images: tuple[tuple[int, int], ...],
    given: dict[str, Any],
    videos: tuple[Video, ...] = (),
) -> Workload:
    """The workload of a report: what the user gave, else what the target suggests, else the defaults.

    Args:
        images: ``(width, height)`` in pixels; they decide the visual tokens, and bring the text tokens that the
            processor puts around them.
        given: `Workload` fields the user gave.
        videos: of each, what `Video` says.

    Raises:
        InputError: invalid sizes.
        UnsupportedModelError: a video for a family that takes none.
    """
    values = {**target.prompt, **given}
    if images or videos:
        values |= _pictured(target.spec, images, videos, Workload.of(**{**values, "images": (), "visual_tokens": 0}))
    elif "visual_tokens" in given:
        values.pop("images", None)
    return Workload.of(**values)


def _pictured(
    spec: ModelSpec, images: tuple[tuple[int, int], ...], videos: tuple[Video, ...], words: Workload
) -> dict[str, Any]:
    """Fields of a workload that follow from what is shown. The first picture's leading marks go to the text before it;
    those behind the last one are no text between pictures."""
    clips = tuple((width, height, sampled_frames(spec, frames, fps)) for width, height, frames, fps in videos)
    shown = encode_all(spec, images)
    frames = [frame for clip in clips for frame in encode_video(spec, *clip)]
    marks = spec.images.marks if spec.images is not None else Marks()
    written = sum(mark_tokens(spec, image) for image in shown)
    written += len(frames) * (spec.video.frame_marks if spec.video is not None else 0)
    before, after = (marks.before, marks.after) if shown else (0, 0)
    between = written - before - after if len(shown) + len(frames) > 1 or written > before + after else 0
    return {
        "visual_tokens": sum(one.visual_tokens for one in [*shown, *frames]),
        "system_tokens": words.system_tokens + before,
        "text_tokens": words.text_tokens + written - before,
        "between_tokens": words.between_tokens + between,
        "mark_tokens": words.mark_tokens + written,
        "images": images,
        "videos": clips,
    }
