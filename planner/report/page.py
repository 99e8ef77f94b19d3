"""The HTML report of a calibration: one self-contained file, tables and pictures, no scripts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib import resources
from typing import Any, Protocol

from planner.plan import Evidence, Plan
from planner.profile import Profile
from planner.report import plan_charts
from planner.report.inline import inline
from planner.report.plan_view import (
    EVIDENCE_HEADERS,
    STAGE_HEADERS,
    evidence_rows,
    provenance,
    stage_legend,
    stage_rows,
    with_interval,
)
from planner.report.probes import sections
from planner.report.probes.masking import window
from planner.report.profile_view import measured_on

#: Tables up to this long are open, beside a picture and below; longer ones are folded.
OPEN_BESIDE, OPEN_BELOW = 12, 6


class TrialRow(Protocol):
    """A candidate that was executed on the way to the plan (`calibrate.deciding.search.Trial`)."""

    @property
    def policy(self) -> str: ...

    @property
    def decoder_flops(self) -> float: ...

    @property
    def proposal(self) -> Any: ...


def page(plan: Plan, profile: Profile | None = None, trials: Sequence[TrialRow] = ()) -> str:
    """The report of a plan as HTML text.

    Args:
        profile: adds a section per probe.
        trials: adds what was tried.

    Raises:
        PlanError: findings that this release cannot read; see `planner.report.probes.sections`.
    """
    evidence = plan.evidence
    return _render(
        plan=plan,
        tiles=_plan_tiles(plan),
        headers=EVIDENCE_HEADERS,
        rows=evidence_rows(evidence.rows) if evidence else [],
        provenance=provenance(evidence) if evidence else "",
        notes=evidence.notes if evidence else (),
        stage_headers=STAGE_HEADERS,
        stages=stage_rows(plan.decision.schedule),
        stage_legend=stage_legend(plan.decision.schedule),
        charts=_plan_charts(plan, trials),
        model=plan.model,
        title=f"Plan for {plan.model.id}",
        **_measured(profile, plan),
    )


def profile_page(profile: Profile) -> str:
    """The report of a profile alone as HTML text: a section per probe.

    Raises:
        PlanError: findings that this release cannot read; see `planner.report.probes.sections`.
    """
    return _render(
        plan=None,
        tiles=_profile_tiles(profile),
        model=profile.model,
        title=f"Profile of {profile.model.id}",
        **_measured(profile, None),
    )


def _render(**values: Any) -> str:
    from jinja2 import Environment

    template = (resources.files("planner.report") / "page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    numbers = itertools.count(1)
    environment.filters["inline"] = lambda svg, title: inline(svg, next(numbers), title)
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    return environment.from_string(template).render(open_beside=OPEN_BESIDE, open_below=OPEN_BELOW, **values)


def _measured(profile: Profile | None, plan: Plan | None) -> dict[str, Any]:
    if profile is None:
        return {"sections": [], "measured_on": []}
    return {"sections": sections(profile, plan), "measured_on": measured_on(profile)}


def _plan_tiles(plan: Plan) -> list[tuple[str, str]]:
    """The figures a reader wants first."""
    tiles: list[tuple[str, str]] = []
    rows = plan.evidence.rows if plan.evidence else ()
    if len(rows) > 1:
        dense, planned = rows[0], rows[1]
        tiles.append((f"{planned.decoder_flops_ratio:.0%}", "of the dense decoder FLOPs"))
        if planned.accuracy and dense.accuracy:
            tiles.append((_tenths(planned.accuracy.value), f"accuracy (dense {_tenths(dense.accuracy.value)})"))
        tiles.append((_tenths(planned.agreement.value), f"agreement with dense ({with_interval(planned.agreement)})"))
        tiles.append((f"{planned.kv_cache_ratio:.0%}", "of the dense KV cache"))
        if planned.prefill_ms and dense.prefill_ms:
            tiles.append((f"{planned.prefill_ms / dense.prefill_ms:.0%}", "of the dense prefill time, measured"))
    elif plan.prediction:
        tiles.append((f"{plan.prediction[0].prefill_ratio:.0%}", "of the dense prefill FLOPs (predicted)"))
        tiles.append((f"{plan.prediction[0].kv_cache_ratio:.0%}", "of the dense KV cache (predicted)"))
    return tiles


def _tenths(share: float) -> str:
    """A share in tenths of a per cent, rounded as the table below rounds it: 0.9925 is 0.993 there."""
    return f"{round(share, 3):.1%}"


def _profile_tiles(profile: Profile) -> list[tuple[str, str]]:
    prompt = profile.prompt
    tiles = [
        (f"{profile.samples.n}", "samples"),
        (f"{prompt.visual_tokens}", f"visual tokens beside {prompt.system_tokens + prompt.text_tokens} of text"),
    ]
    masking, influence = profile.probes.get("masking"), profile.probes.get("influence")
    reading = window(masking.values) if masking is not None else None
    if reading is not None:
        tiles.append((f"{reading[1] - reading[0]} of {profile.model.layers}", f"layers read the image: "
                      f"[{reading[0]}, {reading[1]})"))  # fmt: skip
    stages = influence.values.get("suggested", {}) if influence is not None else {}
    for stage in list(stages.values())[:1]:
        text = f"visual tokens kept at layer {stage['filter']} suffice for half of the samples, by their influence"
        tiles.append((f"{stage['keep']}", text))
    return tiles


def _plan_charts(plan: Plan, trials: Sequence[TrialRow]) -> list[tuple[str, str]]:
    found: list[tuple[str, str | None]] = [("Visual tokens per decoder layer", plan_charts.visual_tokens(plan))]
    if plan.evidence and plan.evidence.rows:
        title = "Accuracy against cost on samples the decision never saw, with 95 % intervals"
        found.append((title, plan_charts.accuracy_against_cost(plan.evidence.rows)))
    if trials and plan.evidence:
        found.append(("Candidates executed on the proposal split", _trials_chart(plan, plan.evidence, trials)))
    return [(title, svg) for title, svg in found if svg is not None]


def _trials_chart(plan: Plan, evidence: Evidence, trials: Sequence[TrialRow]) -> str:
    dense = evidence.rows[0].decoder_flops if evidence.rows else max(trial.decoder_flops for trial in trials)
    points = {trial.policy: (trial.decoder_flops / dense, trial.proposal.value) for trial in trials}
    return plan_charts.trials_against_cost(
        list(points.values()), points.get(plan.decision.policy), evidence.agreement_limit
    )
