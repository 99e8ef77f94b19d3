"""What a reader of a decision should know: few samples, and probes that contradict each other or the plan."""

from __future__ import annotations

from calibrate.deciding.demand import Demand
from calibrate.deciding.power import allowed
from calibrate.deciding.proof import Proof
from calibrate.probes.masking import contradictions
from planner.profile import Profile
from planner.schedule import Schedule, Select

#: Attributed heads beyond this many are not looked at: the image is carried by few.
_HEADS = 8


def why_dense(proof: Proof | None, demand: Demand, certify: int) -> list[str]:
    """Why nothing was proven: what the safest rung lost, what this many samples permit, what more would change."""
    kept = f"a loss of at most {demand.limit:g} with confidence {demand.confidence:g}"
    if proof is None or not proof.tested:
        return [f"no candidate promised {kept}: the plan is dense"]
    first = proof.tested[0]
    found = [
        f"{first.rung.policy}, the safest rung, lost {first.misses} of {certify} samples (a mean of {first.loss:.3g}; "
        f"a loss below {first.bound:.3g} is proven), and {kept} is not: the plan is dense"
    ]
    misses = allowed(certify, demand.limit, demand.confidence)
    more = certify + 1
    while allowed(more, demand.limit, demand.confidence) <= misses:
        more += 1
    permitted = "no proof" if misses < 0 else f"{misses} lost answers"
    return [*found, f"{certify} certify samples permit {permitted}; {more - certify} more would permit {misses + 1}"]


def where_probes_disagree(profile: Profile, agreement: float) -> list[str]:
    """Where the papers' thresholds do not fit the model, and where masking curves contradict what they suggest."""
    influence = profile.probes.get("influence")
    if influence is None:
        return []
    notes = []
    threshold = influence.settings["filter_cos"][0]
    silent = influence.values["stages"][f"{threshold:g}"]["absolute"]["never_filtered"]
    if 2 * silent > influence.n:
        notes.append(
            f"the published threshold (cosine below {threshold:g}) never fires on {silent} of {influence.n} samples: "
            "the plan rests on masking curves and executed candidates"
        )
    if "masking" in profile.probes:
        notes += contradictions(profile.probes["masking"], influence, agreement)
    return notes


def heads_behind_exit(profile: Profile, schedule: Schedule) -> list[str]:
    """Heads that attribution found to carry the image, in layers in which the plan has no visual token left.

    Measurement decides, so this contradicts the plan without forbidding it.
    """
    probe = profile.probes.get("attribution")
    leaves = next((stage.last for stage in schedule.stages if any(map(_drops_all, stage.selects))), None)
    if probe is None or leaves is None or "top_heads" not in probe.values:
        return []
    late = [(layer, head) for layer, head in probe.values["top_heads"][:_HEADS] if layer >= leaves]
    if not late:
        return []
    named = ", ".join(f"{layer}.{head}" for layer, head in late)
    return [
        f"attribution finds {len(late)} of the {_HEADS} heads that carry the image at or after layer {leaves:g}, from "
        f"which on the plan has no visual token ({named}, as layer.head): look at its losses by kind of question"
    ]


def _drops_all(select: Select) -> bool:
    return select.rank_by == "none" and select.of == "visual"
