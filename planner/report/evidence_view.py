"""The evidence of a plan as text: what is promised and what is not, the ladder, policies and controls, kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.evidence import Evidence, Kind, Promise, Rung
from planner.report.along_view import along_headers, along_legend, along_rows, where_most_is_lost
from planner.report.rows_view import filled, rows_table, with_interval
from planner.report.tables import table
from planner.report.units import percent, share_with_interval

LADDER_HEADERS = ("rung", "of dense", "mean loss", "lost", "loss below", "worst kind", "p", "proven")
KIND_HEADERS = ("kind of question", "accuracy", "dense accuracy", "as dense", "loss", "samples")
#: What is counted as a loss, in words: what stays, with the share that may not.
_KEPT = {
    "answer": "at least {kept} of the answers, whole and with their end, are the dense model's",
    "tokens": "at least {kept} of the tokens in the dense model's answers are chosen again, each after those before it",
    "nll": "the dense model's answers become less likely by at most {limit} nats per token on average",
    "score": "accuracy ({metric}) falls by at most {limit}",
}
_METRICS = {
    "exact": "the same words",
    "leading": "the answer begins with the right words; what follows is not judged",
    "contains": "the right words stand in the answer",
    "vqa": "VQA accuracy",
    "anls": "ANLS, similarity of spelling",
}


# -- the promise ------------------------------------------------------------------------------------------------------


def promised(evidence: Evidence, policy: str) -> str:
    """What is promised of the plan, with which confidence and from how many samples, and what is not; two or three
    sentences."""
    promise = evidence.promise
    if promise is None:
        return _before_promises(evidence)
    if policy == "dense":
        return (
            f"Nothing was proven, so the plan is the dense model. {_asked(promise)} was to be shown{_first(promise)}."
        )
    rung = promise.rung(policy)
    if rung is None:
        return "Not proven: this policy was not tested."
    shown = f"{rung.n} samples about {rung.pictures} pictures" if rung.n != rung.pictures else f"{rung.n} samples"
    if not promise.proven:
        return (
            f"Not proven: the best effort of this calibration. {_asked(promise)} was asked for; on {shown} that had no "
            f"part in the choice the loss was {rung.loss:.4f}, so that no more than a loss below {rung.bound:.4f} is "
            "shown with that confidence."
        )
    kept = _KEPT[promise.loss].format(
        kept=f"{1 - promise.limit:g}", limit=f"{promise.limit:g}", metric=promise.metric or ""
    )
    each = f"; of each kind of question the loss is at most {promise.kind_limit:g}" if promise.kind_limit else ""
    lost = f"{rung.misses} lost something" if rung.misses else "none lost anything"
    longest = "" if evidence.longest_answer is None else f"answers beyond {evidence.longest_answer} tokens, "
    return (
        f"Promised with confidence {promise.confidence:g}: on samples like these {kept}{each}. Shown by {shown} that "
        f"had no part in the choice: {lost}. Not promised: right answers where the dense model is wrong, other kinds "
        f"of pictures and questions, {longest}another number format than {evidence.dtype or 'the measured one'}, "
        "and speed."
    )


def _asked(promise: Promise) -> str:
    return f"A loss ({promise.loss}) of at most {promise.limit:g} with confidence {promise.confidence:g}"


def _first(promise: Promise) -> str:
    if not promise.tested:
        return ""
    rung = promise.tested[0]
    return f"; the safest candidate, {rung.policy}, lost {rung.loss:.4f} on {rung.n} samples"


def _before_promises(evidence: Evidence) -> str:
    found = evidence.agreement_when_chosen
    text = "Unproven: this plan was made before plans were proven"
    if found is None:
        return f"{text}."
    return (
        f"{text}. On the {found.n} samples by which it was chosen from many candidates, {share_with_interval(found)} "
        "of the answers stayed the dense model's: on others fewer may."
    )


# -- tables -----------------------------------------------------------------------------------------------------------


def evidence_table(evidence: Evidence, fmt: str = "table") -> str:
    """Policies and controls as measured, the plan first."""
    return rows_table(evidence.rows, fmt)


def ladder_rows(promise: Promise) -> list[list[str]]:
    """Cells under `LADDER_HEADERS`: what the certify samples show of every rung that was tested."""
    return [_ladder_row(one) for one in promise.tested]


def kind_rows(kinds: Sequence[Kind]) -> list[list[str]]:
    """Cells under `KIND_HEADERS`, the worst kind first."""
    return [
        [
            one.kind,
            share_with_interval(one.accuracy),
            share_with_interval(one.dense_accuracy),
            share_with_interval(one.agreement),
            with_interval(one.loss),
            str(one.agreement.n),
        ]
        for one in sorted(kinds, key=_worst)
    ]


def evidence_text(evidence: Evidence, fmt: str) -> list[str]:
    """Tables and the sentences under them, one part each."""
    parts = []
    if evidence.promise is not None and evidence.promise.tested:
        rungs = table(*filled(LADDER_HEADERS, ladder_rows(evidence.promise)), fmt)
        parts.append(rungs + "\n\n" + ladder_legend(evidence.promise))
    if evidence.rows:
        parts.append(evidence_table(evidence, fmt) + "\n\n" + rows_legend(evidence))
    if headers := along_headers(evidence.rows):
        legend = along_legend(evidence.promise.loss if evidence.promise else "tokens")
        said = f"{where_most_is_lost(evidence.rows)} {legend}".strip()
        parts.append(table(headers, along_rows(evidence.rows), fmt) + "\n\n" + said)
    if evidence.kinds:
        parts.append(table(*filled(KIND_HEADERS, kind_rows(evidence.kinds)), fmt) + "\n\n" + worst_kind(evidence))
    return parts


def _ladder_row(one: Rung) -> list[str]:
    lost = f"{one.misses} of {one.n}"
    return [
        one.policy, percent(one.share, 1), f"{one.loss:.4f}", lost, f"{one.bound:.4f}", _worst_of(one.kinds),
        f"{one.p:.3f}", "yes" if one.proven else "no",
    ]  # fmt: skip


def _worst_of(kinds: Mapping[str, float]) -> str:
    if not kinds:
        return ""
    kind = max(sorted(kinds), key=lambda name: kinds[name])
    return f"{kind} {kinds[kind]:.3f}"


def _worst(kind: Kind) -> float:
    return kind.agreement.value if kind.loss is None else -kind.loss.value


# -- sentences --------------------------------------------------------------------------------------------------------


def ladder_legend(promise: Promise) -> str:
    """How to read the ladder."""
    untested = promise.rungs - len(promise.tested)
    left = f" {untested} cheaper {'rung was' if untested == 1 else 'rungs were'} not tested." if untested else ""
    return (
        "The ladder was frozen before these samples were opened, the safest rung first; the first that is not proven "
        f"ends the test.{left} 'Loss below' holds for all rungs at once with confidence {promise.confidence:g}."
    )


def rows_legend(evidence: Evidence) -> str:
    """How to read the policies' table: the metric, the intervals and the controls."""
    parts = [
        "As dense: whole answers equal to the dense model's; no end: answers cut off at the longest length; FLOPs of "
        "the decoder and KV cache: share of dense. Intervals hold 95 %."
    ]
    if evidence.metric is not None and any(row.accuracy is not None for row in evidence.rows):
        meaning = _METRICS.get(evidence.metric, "a metric of the user's own")
        parts.insert(0, f"Accuracy is '{evidence.metric}': {meaning}.")
    if evidence.row("floor") is not None:
        parts.append("Dense again is the dense model against itself: nobody can ask for more.")
    if evidence.row("blind") is not None:
        parts.append("Without a picture, what remains is what the language alone lets guess.")
    return " ".join(parts)


def worst_kind(evidence: Evidence) -> str:
    """The kind of question that suffers most, one sentence."""
    worst = min(evidence.kinds, key=_worst)
    if all((kind.loss or kind.agreement).value == (kind.loss is None) for kind in evidence.kinds):
        return "No kind of question lost anything."
    if worst.loss is not None:
        return f"The plan loses most on '{worst.kind}': {with_interval(worst.loss, 4)} on {worst.loss.n} samples."
    kept = share_with_interval(worst.agreement)
    return f"The plan loses most on '{worst.kind}': {kept} of {worst.agreement.n} answers stay the dense model's."


def provenance(evidence: Evidence) -> str:
    """Which samples decided and which judged, in one sentence or two."""
    decided = f"Decided on {evidence.calibration_n} calibration samples ({evidence.calibration_digest[:12]})"
    if evidence.parts is not None:
        parts = evidence.parts
        decided += f": {parts.propose.n} proposed, {parts.select.n} more selected, {parts.certify.n} others certified"
    if evidence.search is not None:
        found = evidence.search
        decided += f"; {found.executed} of {found.candidates} candidates were executed"
    if evidence.evaluation_digest is None:
        return decided + ". Not evaluated on other samples."
    n = evidence.rows[0].agreement.n if evidence.rows else 0
    return decided + f". Evaluated on {n} samples it never saw ({evidence.evaluation_digest[:12]})."
