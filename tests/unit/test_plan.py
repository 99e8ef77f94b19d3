"""The plan document: frozen, self-checking, refused when edited, newer, or for another model."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import pytest

from planner import load_plan
from planner.errors import InputError, PlanDigestError, PlanError, PlanVersionError
from planner.evidence import Evidence, Measured, Part, Parts, Promise, Row, Rung
from planner.plan import Decision, Plan, predict
from planner.policies import parse
from planner.profile import ModelIdentity
from planner.report.plan_charts import visual_tokens
from planner.report.plan_view import STAGE_VALUES, describe, stage_legend
from planner.schedule import Count, Schedule, Select, Stage, dense
from planner.spec import ModelSpec
from planner.weights import TensorFacts, Weights
from planner.workload import Workload

POLICY = "visipruner:filter=3,keep=20,exit=7"


def promise(**changes) -> Promise:
    """Two rungs, of which the second was not proven."""
    values = {"n": 217, "pictures": 217, "bound": 0.03}
    rungs = (
        Rung(policy=POLICY, share=0.4, loss=2 / 217, misses=2, p=0.19, proven=True, kinds={"name": 0.0}, **values),
        Rung(policy="fastv:k=1,ratio=0.9", share=0.3, loss=3 / 217, misses=3, p=0.37, proven=False, **values),
    )
    found = Promise(loss="answer", limit=0.02, confidence=0.8, proven=True, rungs=3, tested=rungs)
    return found.model_copy(update=changes)


def make_plan() -> Plan:
    keep_20 = Select(rank_by="influence_l2", keep=Count(count=20))
    schedule = Schedule(
        stages=(
            Stage(first=0, last=3, visual_attention="self", text_to_visual="none", cache_visual="none"),
            Stage(first=3, last=4, cache_visual="kept", selects=(keep_20,)),
            Stage(first=4, last=7, selects=(Select(rank_by="none", keep=Count(count=0)),)),
            Stage(first=7, last=10),
        )
    )
    row = Row(
        policy="dense",
        role="dense",
        accuracy=Measured(value=0.98, low=0.96, high=0.99, n=400),
        agreement=Measured(value=1.0, low=0.99, high=1.0, n=400),
        decoder_flops=1e9,
        decoder_flops_ratio=1.0,
        visual_attention_ratio=1.0,
        kv_cache_bytes=1000.0,
        kv_cache_ratio=1.0,
        prefill_ms=12.5,
    )
    evidence = Evidence(
        profile_sha256="p" * 64,
        calibration_digest="c" * 64,
        calibration_n=256,
        promise=promise(),
        parts=Parts(**{name: Part(digest=name[0] * 64, n=8, pictures=8) for name in ("propose", "select", "certify")}),
        evaluation_digest="e" * 64,
        metric="exact",
        rows=(row,),
        notes=("the cosine threshold fires in layer 0",),
    )
    identity = ModelIdentity(
        id="tiny", family="llava", config={}, config_digest="d" * 64, layers=10, hidden_size=128, image_token_id=7
    )
    decision = Decision(policy=POLICY, schedule=schedule)
    return Plan(model=identity, decision=decision, evidence=evidence).sealed()


@pytest.mark.parametrize(("rule", "name"), [("self", "planned, isolated"), ("prefix", "planned, isolated behind text")])
def test_the_staircase_names_the_shallow_rule(rule, name, monkeypatch):
    spec = ModelSpec.from_config("llava-1.5-7b")
    schedule = parse(f"visipruner:filter=3,keep=10,exit=6,visual_attention={rule}").schedule(spec)
    made = make_plan()
    plan = made.model_copy(
        update={
            "model": made.model.model_copy(update={"layers": spec.layers}),
            "decision": Decision(policy="visipruner", schedule=schedule),
            "prediction": (predict(spec, Workload(visual_tokens=576), schedule),),
        }
    )
    drawn = []
    monkeypatch.setattr("planner.report.plan_charts.to_svg", drawn.append)
    visual_tokens(plan)
    legend = drawn[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "planned", name]


def test_saving_and_loading_is_identity(tmp_path):
    plan = make_plan()
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    first = (tmp_path / "plan.json").read_bytes()
    load_plan(tmp_path / "plan.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == first


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda body: body["decision"]["schedule"]["stages"][0].update(last=2), PlanDigestError),
        (lambda body: body.update(schema_version=3), PlanVersionError),
        (lambda body: body.pop("plan_sha256"), PlanError),
    ],
)
def test_edited_or_newer_plans_are_refused_with_a_remedy(tmp_path, edit, error):
    body = make_plan().content()
    edit(body)
    (tmp_path / "plan.json").write_text(json.dumps(body))
    with pytest.raises(error) as caught:
        load_plan(tmp_path / "plan.json")
    assert caught.value.remedy


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_plan(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PlanError, match="not valid JSON"):
        load_plan(tmp_path / "broken.json")


def test_description_tells_stages_evidence_and_notes():
    text = describe(make_plan())
    assert "keep 20 by influence_l2" in text and "drop the image" in text
    assert "98.0 % (96.0-99.0)" in text
    assert "the cosine threshold fires in layer 0" in text
    assert [line.split()[0] for line in text.splitlines() if line[:1].isdigit()] == ["0-2", "3", "4-6", "7-9"]


def test_the_legend_explains_every_value_of_a_stage_and_only_those_shown():
    fields = ("visual_attention", "text_to_visual", "cache_visual")
    values = {value for name in fields for value in get_args(get_type_hints(Stage)[name])}
    assert set(STAGE_VALUES) == values
    assert stage_legend(dense(4)) == f"full: {STAGE_VALUES['full']}; all: {STAGE_VALUES['all']}."
    legend = stage_legend(make_plan().decision.schedule)
    assert "self: " in legend and "none: " in legend and "merge" not in legend
    assert f"\n\n{legend}\n\n" in describe(make_plan())


def test_description_tells_which_weights_it_is_bound_to():
    plan = make_plan()
    assert "Not bound to weights" in describe(plan)
    weights = Weights.of("bfloat16", {"w [2]": TensorFacts(0.5, -1.0, 1.0, (0.1, 0.2))}, full="f" * 64)
    bound = plan.model_copy(update={"model": plan.model.model_copy(update={"weights": weights})})
    assert "Bound to the weights it was made with (1 tensors, bfloat16), and to every byte of them." in describe(bound)


def test_a_plan_is_found_by_its_folder_too(tmp_path):
    plan = make_plan()
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path) == plan
    with pytest.raises(InputError, match="does not exist"):
        load_plan(tmp_path.parent)


def test_a_plan_is_shown_short():
    text = repr(make_plan())
    assert text.startswith(f"<Plan {POLICY} for tiny, proven, ") and len(text) < 100
    assert str(make_plan()) == text
    assert "not proven" in repr(make_plan().model_copy(update={"evidence": None}))
