"""Reuse a profile that was measured before, perhaps on other machines, as the basis of a decision."""

from __future__ import annotations

from pathlib import Path

from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import Model
from calibrate.inputs.samples import SampleSet
from planner.errors import CalibrationError
from planner.profile import Profile, processor_differences
from planner.weights import compare


def take_profile(path: Path, known: Model, samples: SampleSet, encoder: Encoder) -> Profile:
    """Read a profile and refuse it unless it is of this model, these samples and this processor.

    Raises:
        InputError: the file cannot be read.
        PlanError: it is no profile, was changed, or lacks its tables.
        CalibrationError: it was measured on something else; what differs is named.
    """
    profile = Profile.load(path)
    of_model = {name: getattr(profile.model, name) for name in ("id", "revision", "config_digest")}
    model = {name: getattr(known.identity, name) for name in of_model}
    if of_model != model:
        raise CalibrationError(
            f"{path} was measured on the model {_spell(of_model)}, and this one is {_spell(model)}",
            "Name the model it was measured on, or measure this one",
        )
    mine, its = known.identity.weights, profile.model.weights
    reason = compare(its, mine).reason if its is not None and mine is not None else ""
    if reason:
        raise CalibrationError(
            f"{path} was measured with other weights of {profile.model.id}: {reason}",
            "Load the weights it was measured with, or measure these",
        )
    if profile.samples.digest != samples.digest:
        raise CalibrationError(
            f"{path} was measured on other samples: {profile.samples.n} of {profile.samples.source}",
            "Give the --data, --num-samples and --seed it was measured with",
        )
    different = processor_differences(profile.processor, encoder.settings())
    if different:
        raise CalibrationError(
            f"{path} was measured with another processor: {', '.join(different)} differ", "Use the same processor files"
        )
    if profile.arrays_sha256 is not None:
        _ = profile.arrays  # refuses missing or foreign tables now, not after the search
    return profile


def _spell(identity: dict[str, str | None]) -> str:
    revision = f" at {identity['revision']}" if identity["revision"] else ""
    return f"{identity['id']}{revision} (configuration {str(identity['config_digest'])[:12]})"
