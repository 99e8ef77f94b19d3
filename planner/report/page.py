"""The HTML report of a calibration: one self-contained file, tables and pictures, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, Protocol

from planner.plan import Evidence, Plan
from planner.profile import Profile
from planner.report import charts
from planner.report.plan_view import EVIDENCE_HEADERS, STAGE_HEADERS, evidence_rows, provenance, share, stage_rows


class Trial(Protocol):
    """A candidate that was executed on the way to the plan (`calibrate.search.Trial`)."""

    @property
    def policy(self) -> str: ...

    @property
    def decoder_flops(self) -> float: ...

    @property
    def proposing(self) -> Any: ...


def page(plan: Plan, profile: Profile | None = None, trials: Sequence[Trial] = ()) -> str:
    """The report as HTML text; with the profile its per-layer pictures, with the trials what was tried."""
    from jinja2 import Environment

    evidence = plan.evidence
    template = (resources.files("planner.report") / "page.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(template).render(
        plan=plan,
        tiles=_tiles(plan),
        headers=EVIDENCE_HEADERS,
        rows=evidence_rows(evidence) if evidence else [],
        provenance=provenance(evidence) if evidence else "",
        notes=evidence.notes if evidence else (),
        stage_headers=STAGE_HEADERS,
        stages=stage_rows(plan.decision.schedule),
        charts=_charts(plan, profile, trials),
    )


def _tiles(plan: Plan) -> list[tuple[str, str]]:
    """The figures a reader wants first."""
    tiles: list[tuple[str, str]] = []
    rows = plan.evidence.rows if plan.evidence else ()
    if len(rows) > 1:
        dense, planned = rows[0], rows[1]
        tiles.append((f"{planned.decoder_flops_ratio:.0%}", "of the dense decoder FLOPs"))
        if planned.accuracy and dense.accuracy:
            tiles.append((f"{planned.accuracy.value:.1%}", f"accuracy (dense {dense.accuracy.value:.1%})"))
        tiles.append((f"{planned.agreement.value:.1%}", f"agreement with dense ({share(planned.agreement)})"))
        tiles.append((f"{planned.kv_cache_ratio:.0%}", "of the dense KV cache"))
        if planned.prefill_ms and dense.prefill_ms:
            tiles.append((f"{planned.prefill_ms / dense.prefill_ms:.0%}", "of the dense prefill time, measured"))
    elif plan.prediction:
        tiles.append((f"{plan.prediction[0].prefill_ratio:.0%}", "of the dense prefill FLOPs (predicted)"))
        tiles.append((f"{plan.prediction[0].kv_cache_ratio:.0%}", "of the dense KV cache (predicted)"))
    return tiles


def _charts(plan: Plan, profile: Profile | None, trials: Sequence[Trial]) -> list[tuple[str, str]]:
    found: list[tuple[str, str | None]] = [("Visual tokens per decoder layer", charts.staircase(plan))]
    if plan.evidence and plan.evidence.rows:
        title = "Accuracy against cost on samples the decision never saw, with 95 % intervals"
        found.append((title, charts.accuracy_against_cost(plan.evidence.rows)))
    if trials and plan.evidence:
        found.append(("Candidates executed on the proposing samples", _trials_chart(plan, plan.evidence, trials)))
    if profile is not None:
        found.extend(_profile_charts(plan, profile))
    return [(title, svg) for title, svg in found if svg is not None]


def _trials_chart(plan: Plan, evidence: Evidence, trials: Sequence[Trial]) -> str:
    dense = evidence.rows[0].decoder_flops if evidence.rows else max(trial.decoder_flops for trial in trials)
    points = {trial.policy: (trial.decoder_flops / dense, trial.proposing.value) for trial in trials}
    return charts.trials_against_cost(
        list(points.values()), points.get(plan.decision.policy), evidence.agreement_limit
    )


def _profile_charts(plan: Plan, profile: Profile) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    marks = {f"layer {stage.first:g}": float(stage.first) for stage in plan.decision.schedule.stages[1:]}
    if "influence" in profile.probes:
        values: dict[str, Any] = dict(profile.probes["influence"].values)
        shares = [entry["value"] for entry in values["triggered_samples"]]
        threshold = profile.probes["influence"].settings["filter_cos"][0]
        title = f"Influence: share of samples in which some visual token moves the last token (cosine < {threshold})"
        found.append((title, charts.per_layer({"samples": shares}, "share of samples", marks)))
    return found
