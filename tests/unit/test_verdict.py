"""The verdict on a plan: what it says of plans that were proven, were not, are dense, slow, or never measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import load_plan
from planner.evidence import Measured
from planner.plan import Plan, predict
from planner.policies import parse
from planner.report.page import page
from planner.report.plan_view import describe
from planner.report.units import flops, percent, share_with_interval, size
from planner.report.verdict import as_text, verdict
from planner.spec import ModelSpec
from planner.workload import Workload
from tests.unit.test_plan import POLICY, make_plan, promise

ROOT = Path(__file__).parents[2]


def row(role, policy, kept, *, spread=0.01, ms=10.0, share=0.4, **changes):
    dense = make_plan().evidence.rows[0]
    measured = Measured(value=kept, low=kept - spread, high=min(kept + spread, 1), n=400)
    return dense.model_copy(
        update={
            "role": role, "policy": policy, "agreement": measured, "prefill_ms": ms, "decoder_flops": share * 1e9,
            "decoder_flops_ratio": share, "kv_cache_bytes": share * 1000.0, "kv_cache_ratio": share, **changes,
        }
    )  # fmt: skip


def measured(*others, plan=None, **changes) -> Plan:
    """A proven plan beside dense (12.5 ms) and others."""
    made = make_plan()
    rows = (made.evidence.rows[0], plan or row("plan", POLICY, 0.99), *others)
    return made.model_copy(update={"evidence": made.evidence.model_copy(update={"rows": rows, **changes})})


def said(plan, *, fmt="table") -> str:
    return " ".join(as_text(verdict(plan), fmt).split())


def test_a_proven_plan_says_what_it_saves_and_keeps_and_how_surely():
    text = said(measured())
    assert text.startswith(
        "This plan computes 40 % of the dense model's decoder FLOPs and keeps at least 98 % of its answers unchanged: "
        "proven, with confidence 80 %."
    )
    assert (
        "Saved: Decoder FLOPs of a prompt 400 MFLOP in place of 1.00 GFLOP (40 %), KV cache 400 B in place of" in text
    )
    assert "prefill measured here 10.0 ms in place of 12.5 ms (80 %)." in text
    assert "Of 217 samples that had no part in the choice 2 lost something; of 400 others 99.0 % (98.0-100.0)" in text
    assert "98.0 % were right, dense 98.0 %" in text
    assert "What would help" not in text and "less than was promised" not in text


def test_every_output_begins_with_it():
    plan = measured()
    first = verdict(plan, "here/plan.json")
    assert describe(plan, path="here/plan.json").startswith(as_text(first))
    assert describe(plan, "md", "here/plan.json").startswith(as_text(first, "md"))
    html = page(plan, path="here/plan.json")
    assert html.index("keeps at least 98") < html.index('id="plan"')
    for _, line in first.commands:
        assert line.replace('"', "&#34;") in html
    assert "plan run here/plan.json" in html
    assert all(len(line) <= 100 for line in as_text(first).splitlines())


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("tokens", "98 % of the tokens in its answers"),
        ("nll", "its answers within 0.02 nats per token"),
        ("score", "its accuracy (anls) within 2 %"),
    ],
)
def test_what_is_kept_is_named_by_its_loss(loss, says):
    assert says in said(measured(promise=promise(loss=loss, metric="anls")))


def test_others_are_told_apart_only_beyond_their_intervals():
    random = row("policy", "random:k=2,ratio=0.9", 0.7)
    close, far = row("policy", "fastv:k=2,ratio=0.9", 0.985), row("policy", "vtw:k=3", 0.8)
    text = said(measured(random, far, close))
    assert "At that cost random pruning keeps 70.0 % of the answers (fewer)" in text
    assert "the best other policy, fastv, keeps 98.5 % of the answers (not told apart from the plan's)" in text
    better = said(measured(row("policy", "fastv:k=2,ratio=0.9", 0.999, spread=0.0), plan=row("plan", POLICY, 0.95)))
    assert "fastv, keeps 99.9 % of the answers (more)" in better
    dear = said(measured(row("policy", "fastv:k=2,ratio=0.9", 0.7, share=0.5)))
    assert "70.0 % of the answers (fewer) for 50 % of the FLOPs" in dear
    losing = [
        row(role, policy, 0.9, loss=Measured(value=value, low=value - 0.01, high=value + 0.01, n=400))
        for role, policy, value in (("plan", POLICY, 0.01), ("policy", "random:k=1", 0.2))
    ]
    assert "random pruning loses 0.200 a sample where the plan loses 0.010 (worse)" in said(
        measured(losing[1], plan=losing[0])
    )


def test_a_plan_that_is_slow_here_says_so_and_why_and_what_to_do():
    command = f"plan calibrate {make_plan().model.id} --data SAMPLES --minimise prefill-ms --hardware measured"
    fast = said(measured(row("policy", "random:k=2,ratio=0.9", 0.7, ms=9.8), plan=row("plan", POLICY, 0.99, ms=5.0)))
    assert "Time:" not in fast and command not in fast
    beaten = said(measured(row("policy", "random:k=2,ratio=0.9", 0.7, ms=8.0)))
    assert "At its FLOPs random (8.0 ms) ran faster than the plan (10.0 ms)" in beaten and command in beaten
    slow = said(measured(plan=row("plan", POLICY, 0.99, ms=13.0)))
    assert "On this machine the plan is no faster than the dense model." in slow and command in slow
    assert "falls less than FLOPs do" in slow
    untimed = said(measured(plan=row("plan", POLICY, 0.99, ms=None)))
    assert "measured here" not in untimed and command not in untimed


@pytest.mark.parametrize(("tokens", "why"), [(16, "each layer's fixed cost"), (20_000, "launching kernels")])
def test_why_time_falls_less_depends_on_the_size_of_a_prefill(tokens, why):
    spec = ModelSpec.from_config(ROOT / "profiles" / "reference" / "windowed")
    prediction = predict(spec, Workload(visual_tokens=tokens), parse("fastv:k=2,ratio=0.5").schedule(spec))
    plan = measured().model_copy(update={"prediction": (prediction,)})
    assert (prediction.dense.prefill_flops < 5e10) == (tokens == 16)
    assert why in said(plan)


def test_an_evaluation_that_contradicts_the_promise_is_said():
    assert "That is less than was promised" in said(measured(plan=row("plan", POLICY, 0.9)))
    assert "one of the 20 % of plans that fail" in said(measured(plan=row("plan", POLICY, 0.9)))
    loss = Measured(value=0.1, low=0.05, high=0.15, n=400)
    assert "less than was promised" in said(measured(plan=row("plan", POLICY, 0.99, loss=loss)))


def test_a_best_effort_is_called_not_proven_with_what_would_help():
    text = said(measured(promise=promise(proven=False)))
    assert "that it keeps at least 98 % of its answers unchanged is not proven." in text
    assert "which shows a mean loss below 0.03 and no more" in text
    assert "A looser limit (--agreement 0.97 is near what visipruner" in text
    assert "more calibration samples than the 217 that certified here" in text


def dense_plan(**changes) -> Plan:
    made = make_plan()
    decision = made.decision.model_copy(update={"policy": "dense", "schedule": parse("dense").schedule(_spec())})
    evidence = made.evidence.model_copy(update={"promise": promise(proven=False), **changes})
    return made.model_copy(update={"decision": decision, "evidence": evidence})


def _spec() -> ModelSpec:
    return ModelSpec.from_config(ROOT / "profiles" / "reference" / "windowed")


def test_a_dense_plan_says_why_and_what_would_help():
    text = said(dense_plan())
    assert text.startswith("No plan: the model stays as it is")
    assert f"the safest candidate, {POLICY} (40 % of dense), lost 2 of 217 samples, too many for that." in text
    assert "--agreement 0.97" in text and f"{make_plan().model.id} --data SAMPLES --best-effort" in text
    assert "plan serve" not in text and "Saved" not in text
    nothing = said(dense_plan(promise=promise(proven=False, tested=(), rungs=0)))
    assert "no candidate that saves anything looked as if it could" in nothing


def test_plans_without_proof_or_evidence_say_so():
    bare = make_plan().model_copy(update={"evidence": None})
    assert "what it keeps of the answers was not measured" in said(bare)
    assert "plan evaluate plan.json --data SAMPLES" in said(bare)
    assert "it was made before plans were proven" in said(measured(promise=None))


@pytest.mark.parametrize("name", ["windowed", "plain"])
def test_the_committed_plans_are_judged(name):
    plan = load_plan(ROOT / "reports" / "reference" / name / "plan.json")
    found = verdict(plan)
    assert "proven, with confidence 80 %" in found.headline
    assert [point for point, _ in found.points][:3] == ["Saved", "Kept", "Others"]
    twin = (ROOT / "reports" / "reference" / name / "plan.md").read_text()
    path = f"reports/reference/{name}/plan.json"
    assert twin == describe(plan, "md", path) + "\n", f"run: plan show {path} --format md"


def test_numbers_are_spelled_in_units_that_people_read():
    spelled = [flops(count) for count in (0, 4.5926e6, 7.9e8, 8.02e12)]
    assert spelled == ["0 FLOP", "4.59 MFLOP", "790 MFLOP", "8.02 TFLOP"]
    assert [size(count) for count in (12, 404_480, 1.28e8, 2.5e10)] == ["12 B", "404 KB", "128 MB", "25.0 GB"]
    assert [percent(share) for share in (0, 0.004, 0.5, 0.995, 1)] == ["0 %", "0.4 %", "50 %", "99.5 %", "100 %"]
    assert share_with_interval(None) == ""
