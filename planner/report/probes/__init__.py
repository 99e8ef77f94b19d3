"""What each probe shows: one function a probe, from its findings to a `Section`.

To show another probe: write a function ``Subject -> Section`` and name it in `SECTIONS`. Without one its values are
shown as they are (`plain`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from planner.errors import PlanDigestError, PlanError
from planner.plan import Plan
from planner.profile import Arrays, ProbeResult, Profile
from planner.report.probes import plain
from planner.report.section import Section, Subject

#: Probe to the function that shows it, in the order of a report; modules are imported when asked for.
SECTIONS: dict[str, str] = {
    "influence": "influence:section",
    "masking": "masking:section",
    "token_masking": "token_masking:section",
    "sparsity": "attention:sparsity",
    "value_norms": "attention:value_norms",
    "flip": "attention:flip",
    "instructions": "instructions:section",
    "lens": "lens:section",
    "sinks": "sinks:section",
    "sink_masking": "sink_masking:section",
    "encoder_sinks": "encoder_sinks:section",
    "attribution": "attribution:section",
    "context": "context:section",
}
#: Shown at the head of a report instead.
_HEAD = "prompt"


def sections(profile: Profile, plan: Plan | None = None) -> list[Section]:
    """A section per probe of the profile; probes that nothing here knows come last, as plain values.

    Args:
        plan: its layers are pointed out, and its limit is the one that curves are judged by.

    Raises:
        PlanError: a probe's findings lack something that this release writes.
        PlanDigestError: the tables beside the profile belong to another.
    """
    arrays = _tables(profile)
    try:
        return _sections(profile, plan, arrays)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        cause = f"the profile holds findings of another form than this release writes ({error})"
        raise PlanError(cause, "Make the profile again with `plan calibrate`") from error


def _sections(profile: Profile, plan: Plan | None, arrays: Arrays) -> list[Section]:
    known = [name for name in SECTIONS if name in profile.probes]
    other = [name for name in profile.probes if name not in SECTIONS and name != _HEAD]
    influence = profile.probes.get("influence")
    suggested = influence.values.get("suggested", {}) if influence is not None else {}
    heads = _heads(profile)
    found = []
    for name in [*known, *other]:
        probe = profile.probes[name]
        subject = Subject(
            probe=probe,
            prompt=profile.prompt,
            layers=profile.model.layers,
            heads=heads,
            marks=_marks(plan, suggested),
            limit=_limit(plan),
            suggested=suggested,
            others={other: result for other, result in profile.probes.items() if other != name},
            arrays={key.partition("/")[2]: table for key, table in arrays.items() if key.startswith(f"{name}/")},
        )
        found.append(_shown(name, subject) if probe.values else _empty(name, probe))
    return found


def _limit(plan: Plan | None) -> float:
    asked = None if plan is None or plan.evidence is None else plan.evidence.least_agreement
    return Subject.limit if asked is None else asked


def _shown(name: str, subject: Subject) -> Section:
    if name not in SECTIONS:
        return plain.section(name, subject)
    module, function = SECTIONS[name].split(":")
    show: Callable[[Subject], Section] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    try:
        return show(subject)
    except KeyError as error:
        cause = f"what the profile says about {name} lacks {error}, which this release reads"
        raise PlanError(cause, "Make the profile again with `plan calibrate`") from error


def _tables(profile: Profile) -> Arrays:
    """Per-sample tables; empty where they are not kept beside the profile, which costs a few pictures only."""
    try:
        return profile.arrays
    except PlanDigestError:
        raise
    except PlanError:
        return {}


def _heads(profile: Profile) -> int:
    from planner.spec import ModelSpec

    return max(layer.attention.heads for layer in ModelSpec.from_config(profile.model.config).decoder.layers)


def _marks(plan: Plan | None, suggested: Mapping[str, Any]) -> dict[str, float]:
    """Layers to point out: where a plan selects and drops visual tokens, else what influence suggests for half of the
    samples."""
    if plan is None:
        stage = next(iter(suggested.values()), None)
        return {} if stage is None else {f"suggested {key} {stage[key]}": stage[key] for key in ("filter", "exit")}
    marks: dict[str, float] = {}
    for stage in plan.decision.schedule.stages:
        for select in stage.selects:
            if select.of == "visual":
                exits = select.rank_by == "none"
                at = stage.last if exits else stage.last - 1
                marks[f"plan {'exit' if exits else 'selects'} {at:g}"] = at
    return marks


def _empty(name: str, probe: ProbeResult) -> Section:
    return Section(name, name.replace("_", " ").capitalize(), "", [f"Measured on {probe.n} samples: nothing to show."])
