"""What a plan says it promises, and what becomes of plans of the first schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner import load_plan
from planner.document import digest
from planner.errors import PlanDigestError, PlanError
from planner.evidence import Evidence, Kind, Measured, Place
from planner.plan import Plan
from planner.report.along_view import along_headers, along_rows, where_most_is_lost
from planner.report.evidence_view import (
    KIND_HEADERS,
    kind_rows,
    ladder_legend,
    promised,
    worst_kind,
)
from planner.report.page import page
from planner.report.plan_view import describe
from planner.report.rows_view import filled, named, rows_table
from planner.report.tables import WIDTH, folded, layer_runs, table
from tests.unit.test_plan import POLICY, make_plan, promise

ROOT = Path(__file__).parents[2]


def evidence(**changes) -> Evidence:
    found = make_plan().evidence
    assert found is not None
    return found.model_copy(update=changes)


def test_a_proven_promise_says_what_how_sure_from_what_and_what_not():
    text = promised(evidence(), POLICY)
    assert text.startswith(
        "Promised with confidence 0.8: on samples like these at least 0.98 of the answers, whole and with their end, "
        "are the dense model's. Shown by 217 samples that had no part in the choice: 2 lost something. Not promised: "
    )
    assert "speed" in text and "answers beyond" not in text
    assert "answers beyond 16 tokens" in promised(evidence(longest_answer=16), POLICY)
    for loss, says in (("tokens", "0.98 of the tokens"), ("nll", "0.02 nats"), ("score", "accuracy (anls) falls by")):
        changed = promise(loss=loss, metric="anls")
        assert says in promised(evidence(promise=changed), POLICY)
    assert "of each kind of question the loss is at most 0.1" in promised(
        evidence(promise=promise(kind_limit=0.1)), POLICY
    )
    grouped = tuple(one.model_copy(update={"pictures": 54}) for one in promise().tested)
    assert "Shown by 217 samples about 54 pictures" in promised(evidence(promise=promise(tested=grouped)), POLICY)


def test_what_is_not_proven_is_said_first():
    best = promised(evidence(promise=promise(proven=False)), "fastv:k=1,ratio=0.9")
    assert best.startswith("Not proven: the best effort") and "0.0138" in best and "below 0.0300 is shown" in best
    nothing = promised(evidence(promise=promise(proven=False)), "dense")
    assert nothing.startswith("Nothing was proven, so the plan is the dense model.") and POLICY in nothing
    old = evidence(promise=None, agreement_when_chosen=Measured(value=0.99, low=0.963, high=0.997, n=192))
    assert promised(old, POLICY).startswith("Unproven: ") and "by which it was chosen" in promised(old, POLICY)


def test_the_page_s_first_tile_says_whether_it_is_proven():
    plan = make_plan()
    assert "<b>0.02</b>largest expected loss, proven with confidence 0.8" in page(plan)
    row = evidence().rows[0].model_copy(update={"role": "plan"})
    old = evidence(promise=None, rows=(*evidence().rows, row))
    assert "<b>not proven</b>" in page(plan.model_copy(update={"evidence": old}))


def test_long_spellings_go_on_in_the_next_line():
    spelling = "prellm:keep=0.7,rank_by=norm+visipruner:filter=3,keep=3,visual_attention=self,rank_by=attention"
    lines = folded(spelling, 48).split("\n")
    assert "".join(lines) == spelling and all(len(line) <= 48 for line in lines) and len(lines) == 3
    assert folded("dense again, batches of 9", 48) == "dense again, batches of 9"
    assert folded("a,b", 48) == "a,b" and folded("", 48) == ""


def rows_of_every_role():
    """Dense first, as evaluations have it; two of one policy, and one that lost most of all."""
    whole = evidence().rows[0]
    half = Measured(value=0.5, low=0.45, high=0.55, n=400)

    def row(role, policy, value, **changes):
        agreement = whole.agreement.model_copy(update={"value": value})
        return whole.model_copy(update={"role": role, "policy": policy, "agreement": agreement, **changes})

    policies = ["random:k=2,ratio=0.9", "fastv:k=2,ratio=0.91234", "resize:keep=0.25", "fastv:k=3,ratio=0.9"]
    long = "prellm:keep=0.7,rank_by=norm+visipruner:filter=3,keep=3,visual_attention=self,rank_by=attention"
    nothing = {"decoder_flops_ratio": None, "kv_cache_ratio": None, "prefill_ms": None, "runaway": half}
    return [
        row("dense", "dense", 1.0),
        row("plan", POLICY, 0.99),
        row("floor", "dense again, batches of 9, bfloat16", 1.0, **nothing),
        row("blind", "no picture", 0.01, **nothing),
        *(row("policy", one, 0.9 - i / 10, loss=half) for i, one in enumerate(policies)),
        row("policy", long, 0.95, loss=half),
    ]


def test_rows_stand_under_short_names_the_plan_first_and_controls_last():
    rows = rows_of_every_role()
    found = named([row.model_copy(update={"loss": None}) for row in rows])
    assert [name for name, _ in found] == [
        "plan", "prellm+visipruner", "fastv", "fastv 2", "random", "resize", "dense", "dense again", "no picture",
    ]  # fmt: skip
    assert [row.policy for name, row in found if name.startswith("fastv")] == [rows[5].policy, rows[7].policy]


@pytest.mark.parametrize("fmt", ["table", "md"])
def test_spellings_stand_below_the_table(fmt):
    text = rows_table([row.model_copy(update={"loss": None}) for row in rows_of_every_role()], fmt)
    above, below = text.split("\n\n")
    assert POLICY not in above and POLICY in below and "batches of 9" in below
    assert "98.0 % (96.0-99.0)" in above and "99.0 % (99.0-100.0)" in above and "12.5 ms" in above


def test_a_table_of_every_column_fits_its_width():
    table_lines = rows_table(rows_of_every_role()).split("\n\n")[0].splitlines()
    assert max(map(len, table_lines)) <= WIDTH
    assert all(name in table_lines[0] for name in ("accuracy", "loss", "no end", "FLOPs", "KV cache", "prefill"))


def test_long_cells_of_any_column_are_folded_and_nothing_is_lost():
    words = "keep 0.25 of them by max_min_distance; redistribute 40% of sink attention; keep 3 by influence_l2 (probe)"
    text = table(["layers", "image sees image", "then"], [["0-9", "prefix", words], ["10", "self", ""]])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert " ".join(line[26:].strip() for line in text.splitlines()[2:]).split() == words.split()
    unbreakable = "x" * 150
    assert unbreakable in table(["layers", "then"], [["0", unbreakable]])
    assert words in table(["layers", "then"], [["0", words]], "md")


def test_tokens_per_layer_are_runs():
    assert layer_runs([144, 144, 20, 0, 0, 0, 20]) == "144 x 2, 20 x 1, 0 x 3, 20 x 1"
    assert layer_runs([]) == "" and layer_runs([3.5]) == "3.5 x 1"
    assert layer_runs(range(9)) == "0 x 1, 1 x 1, 2 x 1, 3 x 1, ..., 6 x 1, 7 x 1, 8 x 1"


def test_a_plan_is_proven_if_its_own_rung_is():
    plan = make_plan()
    assert plan.proven
    changed = plan.decision.model_copy(update={"policy": "fastv:k=1,ratio=0.9"})
    assert not plan.model_copy(update={"decision": changed}).proven, "a rung that was not proven"
    assert not plan.model_copy(update={"evidence": evidence(promise=promise(proven=False))}).proven
    assert not plan.model_copy(update={"evidence": evidence(promise=None)}).proven
    assert not plan.model_copy(update={"evidence": None}).proven


def test_text_and_page_carry_promise_and_ladder():
    plan = make_plan()
    for shown in (describe(plan), page(plan)):
        assert "Promised with confidence 0.8" in shown and "fastv:k=1,ratio=0.9" in shown.replace("\n", "").replace(
            "<wbr>", ""
        )
        assert "1 cheaper rung was not tested" in shown
        assert "worst kind" in shown and "name 0.000" in shown
    assert "not tested" not in ladder_legend(promise(rungs=2))


def test_the_worst_kind_comes_first():
    def share(value):
        return Measured(value=value, low=value - 0.1, high=value, n=20)

    kinds = (
        Kind(kind="name", accuracy=None, dense_accuracy=None, agreement=share(1.0)),
        Kind(kind="count", accuracy=None, dense_accuracy=None, agreement=share(0.8)),
    )
    headers, rows = filled(KIND_HEADERS, kind_rows(kinds))
    assert [row[0] for row in rows] == ["count", "name"] and "accuracy" not in headers
    assert "'count': 80.0 % (70.0-80.0)" in worst_kind(evidence(kinds=kinds))
    whole = (kinds[0],)
    assert worst_kind(evidence(kinds=whole)) == "No kind of question lost anything."
    unscathed = kinds[1].model_copy(update={"loss": Measured(value=0.0, low=0.0, high=0.0, n=20)})
    assert worst_kind(evidence(kinds=(unscathed,))) == "No kind of question lost anything."
    lossy = tuple(kind.model_copy(update={"loss": share(1.8 - kind.agreement.value)}) for kind in kinds)
    assert "'count': 1.0000" in worst_kind(evidence(kinds=lossy))


def test_where_along_an_answer_tokens_are_lost():
    def along(*losses):
        ends = [(1, 1), (2, 2), (3, 4)]
        counts = (20, 20, 12)
        return tuple(
            Place(first=first, last=last, loss=Measured(value=loss, low=loss / 2, high=2 * loss, n=n))
            for (first, last), loss, n in zip(ends, losses, counts, strict=True)
        )

    row = evidence().rows[0]
    rows = tuple(
        row.model_copy(update={"policy": policy, "role": role, "along": along(*losses)})
        for policy, role, losses in (
            (POLICY, "plan", (0.0, 0.05, 0.1)),
            ("random:k=2,ratio=0.8", "policy", (0.1, 0.1, 0.3)),
            ("dense", "dense", (0.0, 0.0, 0.0)),
        )
    )
    assert along_headers(rows) == ["tokens of the answer", "plan", "random", "answers"]
    assert along_rows(rows)[2] == ["tokens 3-4", "0.100 (0.050-0.200)", "0.300 (0.150-0.600)", "12"]
    assert where_most_is_lost(rows) == (
        "Along an answer the plan loses most at tokens 3-4: 0.100 (0.050-0.200) on 12 answers that reach so far."
    )
    unscathed = (rows[0].model_copy(update={"along": along(0.0, 0.0, 0.0)}),)
    assert where_most_is_lost(unscathed) == "Along its answers the plan lost nothing."
    assert along_headers(evidence().rows) == [] and where_most_is_lost(evidence().rows) == ""
    plan = make_plan().model_copy(update={"evidence": evidence(rows=rows)})
    assert "tokens 3-4" in describe(plan) and "Along the answer" in page(plan)
    for loss, unit in (("tokens", "would have gone on otherwise"), ("nll", "In nats")):
        plan = make_plan().model_copy(update={"evidence": evidence(rows=rows, promise=promise(loss=loss))})
        assert unit in " ".join(describe(plan).split()) and unit in page(plan)


# -- the first schema -------------------------------------------------------------------------------------------------


def first_schema() -> dict:
    """A plan as the first schema wrote it: the committed one's blocks, with evidence in the old words."""
    body = make_plan().content()
    measured = {"value": 1.0, "low": 0.9, "high": 1.0, "n": 30}
    row = {
        "policy": "dense", "accuracy": measured, "agreement": measured, "decoder_flops": 1e9,
        "decoder_flops_ratio": 1.0, "visual_attention_ratio": 1.0, "kv_cache_bytes": 1e3, "kv_cache_ratio": 1.0,
        "prefill_ms": None,
    }  # fmt: skip
    body["evidence"] = {
        "profile_sha256": "p" * 64, "calibration_digest": "c" * 64, "calibration_n": 256, "agreement_limit": 0.95,
        "held_back_agreement": {"value": 0.99, "low": 0.97, "high": 1.0, "n": 192}, "evaluation_digest": "e" * 64,
        "rows": [row, {**row, "policy": POLICY}, {**row, "policy": "random:k=2,ratio=0.8"}], "notes": ["a note"],
    }  # fmt: skip
    body["schema_version"] = 1
    return sealed(body)


def sealed(body: dict) -> dict:
    content = {name: value for name, value in body.items() if name != "plan_sha256"}
    return {**content, "plan_sha256": digest(content)}


def test_a_plan_of_the_first_schema_loads_and_is_unproven(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(first_schema()))
    plan = load_plan(tmp_path / "old.json")
    found = plan.evidence
    assert found is not None and plan.schema_version == Plan.SCHEMA_VERSION == 2
    assert [row.role for row in found.rows] == ["dense", "plan", "policy"]
    assert found.promise is None and found.metric == "leading" and found.least_agreement == 0.95
    assert found.agreement_when_chosen == Measured(value=0.99, low=0.97, high=1.0, n=192)
    assert "Unproven: this plan was made before" in describe(plan) and "a note" in describe(plan)
    plan.save(tmp_path / "new.json")
    assert load_plan(tmp_path / "new.json") == plan


def test_a_plan_of_the_first_schema_without_evidence_loads(tmp_path):
    plan = Plan.parse(sealed({**first_schema(), "evidence": None}))
    assert plan.evidence is None and plan == Plan.parse(plan.content())


@pytest.mark.parametrize("damage", [{"evidence": {"rows": 3}}, {"decision": None}, {"evidence": [1]}])
def test_damaged_plans_of_the_first_schema_are_refused(damage):
    with pytest.raises(PlanDigestError):
        Plan.parse({**first_schema(), **damage})
    with pytest.raises(PlanError, match="not a valid plan"):
        Plan.parse(sealed({**first_schema(), **damage}))


@pytest.mark.parametrize("name", ["windowed", "plain"])
def test_committed_plans_load(name):
    assert load_plan(ROOT / "reports" / "reference" / name / "plan.json").schema_version == 2
