"""The HTML report of a calibration: one self-contained file, tables and pictures, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from planner.evidence import Evidence, Measured
from planner.plan import Plan
from planner.profile import Profile
from planner.report import glossary, plan_charts
from planner.report.along_view import along_headers, along_legend, along_rows, where_most_is_lost
from planner.report.evidence_view import (
    KIND_HEADERS,
    LADDER_HEADERS,
    kind_rows,
    ladder_legend,
    ladder_rows,
    promised,
    provenance,
    rows_legend,
    worst_kind,
)
from planner.report.plan_view import ENGINE_HEADERS, STAGE_HEADERS, engine_rows, stage_legend, stage_rows
from planner.report.probes import sections
from planner.report.probes.masking import window
from planner.report.profile_view import measured_on
from planner.report.rows_view import ROW_HEADERS, evidence_rows, filled, named, spellings
from planner.report.samples import Shown, told
from planner.report.templates import render_page
from planner.report.units import percent
from planner.report.verdict import verdict

#: Tables up to this long are open, beside a picture and below; longer ones are folded.
OPEN_BESIDE, OPEN_BELOW = 12, 6


class TrialRow(Protocol):
    """A candidate that was executed on the way to the plan (`calibrate.deciding.decide.Trial`)."""

    @property
    def policy(self) -> str: ...

    @property
    def share(self) -> float: ...

    @property
    def loss(self) -> float: ...


def page(
    plan: Plan,
    profile: Profile | None = None,
    trials: Sequence[TrialRow] = (),
    path: str = "plan.json",
    samples: Sequence[Shown] = (),
) -> str:
    """The report of a plan as HTML text, the verdict first.

    Args:
        profile: adds a section per probe.
        trials: adds what was tried.
        path: of the plan, for the commands that the verdict names.
        samples: adds pictures with the patches that were kept, and answers.

    Raises:
        PlanError: findings that this release cannot read; see `planner.report.probes.sections`.
    """
    evidence = plan.evidence
    return _render(
        plan=plan,
        verdict=verdict(plan, path),
        tiles=_plan_tiles(plan),
        promise=promised(evidence, plan.decision.policy) if evidence else "",
        tables=_evidence_tables(evidence) if evidence else [],
        provenance=provenance(evidence) if evidence else "",
        notes=evidence.notes if evidence else (),
        stage_headers=STAGE_HEADERS,
        stages=stage_rows(plan.decision.schedule),
        stage_legend=stage_legend(plan.decision.schedule),
        engine_headers=ENGINE_HEADERS,
        engines=engine_rows(plan),
        charts=_plan_charts(plan, trials),
        samples=samples,
        samples_told=told(samples, evidence),
        words=glossary.explained(glossary.PLAN),
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
        words=glossary.explained(glossary.PROFILE),
        model=profile.model,
        title=f"Profile of {profile.model.id}",
        **_measured(profile, None),
    )


def _render(**values: Any) -> str:
    return render_page("page.html.jinja", open_beside=OPEN_BESIDE, open_below=OPEN_BELOW, **values)


def _measured(profile: Profile | None, plan: Plan | None) -> dict[str, Any]:
    if profile is None:
        return {"sections": [], "measured_on": []}
    return {"sections": sections(profile, plan), "measured_on": measured_on(profile)}


def _plan_tiles(plan: Plan) -> list[tuple[str, str]]:
    """The figures a reader wants first."""
    tiles: list[tuple[str, str]] = []
    dense = plan.evidence.row("dense") if plan.evidence else None
    planned = plan.evidence.row("plan") if plan.evidence else None
    promise = plan.evidence.promise if plan.evidence else None
    if plan.proven and promise is not None:
        what = "largest expected drop of accuracy" if promise.loss == "score" else "largest expected loss"
        tiles.append((f"{promise.limit:g}", f"{what}, proven with confidence {promise.confidence:g}"))
    elif planned is not None:
        tiles.append(("not proven", "what the plan keeps"))
    if dense is not None and planned is not None:
        if planned.decoder_flops_ratio is not None:
            tiles.append((percent(planned.decoder_flops_ratio), "of the dense decoder FLOPs"))
        if planned.accuracy and dense.accuracy:
            tiles.append((_tenths(planned.accuracy.value), f"accuracy (dense {_tenths(dense.accuracy.value)})"))
        tiles.append((_tenths(planned.agreement.value), f"whole answers as dense ({_interval(planned.agreement)})"))
        if planned.kv_cache_ratio is not None:
            tiles.append((percent(planned.kv_cache_ratio), "of the dense KV cache"))
        if planned.prefill_ms and dense.prefill_ms:
            tiles.append((percent(planned.prefill_ms / dense.prefill_ms), "of the dense prefill time, measured"))
    elif plan.prediction:
        tiles.append((percent(plan.prediction[0].prefill_ratio), "of the dense prefill FLOPs (predicted)"))
        tiles.append((percent(plan.prediction[0].kv_cache_ratio), "of the dense KV cache (predicted)"))
    return tiles


class _Titled(NamedTuple):
    """A table on the page: what it means, one sentence, stands above it, how to read it below; a row is marked."""

    title: str
    meaning: str
    headers: Sequence[str]
    cells: Sequence[Sequence[str]]
    below: Sequence[str]
    marked: int = -1


def _evidence_tables(evidence: Evidence) -> list[_Titled]:
    found = []
    if evidence.rows:
        planned = next((i for i, (_, row) in enumerate(named(evidence.rows)) if row.role == "plan"), -1)
        below = [rows_legend(evidence), "; ".join(spellings(evidence.rows).split("\n"))]
        meaning = (
            "What the plan keeps, beside others at its cost and controls, on samples that had no part in the choice."
        )
        found.append(_Titled("Measured", meaning, *filled(ROW_HEADERS, evidence_rows(evidence.rows)), below, planned))
    if evidence.promise is not None and evidence.promise.tested:
        promise = evidence.promise
        last = max((i for i, one in enumerate(promise.tested) if one.proven), default=-1)
        meaning = "Candidates in the order in which they were tested; the last one that was proven is the plan."
        headers, cells = filled(LADDER_HEADERS, ladder_rows(promise))
        found.append(_Titled("How it was proven", meaning, headers, cells, [ladder_legend(promise)], last))
    if columns := along_headers(evidence.rows):
        below = [along_legend(evidence.promise.loss if evidence.promise else "tokens")]
        meaning = where_most_is_lost(evidence.rows)
        found.append(_Titled("Along the answer", meaning, columns, along_rows(evidence.rows), below))
    if evidence.kinds:
        headers, cells = filled(KIND_HEADERS, kind_rows(evidence.kinds))
        found.append(_Titled("By kind of question", worst_kind(evidence), headers, cells, []))
    return found


def _interval(measured: Measured) -> str:
    return f"{100 * measured.low:.1f} to {_tenths(measured.high)}"


def _tenths(share: float) -> str:
    """A share in tenths of a per cent, as the table below has it."""
    return percent(share, 1)


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
    evidence = plan.evidence
    found: list[tuple[str, str | None]] = []
    if evidence and evidence.rows:
        front = _answers_front(evidence)
        caption = (
            "What is kept against cost on samples the decision never saw, with 95 % intervals. A point that would hide "
            "another stands beside it."
            + (" The line is the search's front, of few samples that also selected." if front else "")
        )
        found.append((caption, plan_charts.kept_against_cost(evidence.rows, front)))
    found.append(("Visual tokens that each decoder layer computes", plan_charts.visual_tokens(plan)))
    if trials or (evidence and evidence.search):
        caption = "Candidates executed on the search samples; of the front none costs less and loses less."
        found.append((caption, _search_chart(plan, trials)))
    return [(caption, svg) for caption, svg in found if svg is not None]


def _answers_front(evidence: Evidence) -> list[tuple[float, Measured]]:
    """The search's front, where its loss is of whole answers and its cost decoder FLOPs."""
    search, promise = evidence.search, evidence.promise
    if search is None or promise is None or promise.loss != "answer" or search.minimised != "decoder FLOPs":
        return []
    return [(one.share, one.loss) for one in search.front]


def _search_chart(plan: Plan, trials: Sequence[TrialRow]) -> str | None:
    """Every candidate that was executed, else the front that the plan keeps."""
    evidence = plan.evidence
    front = () if evidence is None or evidence.search is None else evidence.search.front
    points = {one.policy: (one.share, one.loss) for one in trials} or {
        one.policy: (one.share, one.loss.value) for one in front
    }
    if not points:
        return None
    limit = None if evidence is None or evidence.promise is None else evidence.promise.limit
    return plan_charts.losses_against_cost(
        list(points.values()),
        [(one.share, one.loss) for one in front],
        points.get(plan.decision.policy),
        limit,
        "decoder FLOPs" if evidence is None or evidence.search is None else evidence.search.minimised,
    )
