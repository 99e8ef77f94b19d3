"""What engines can carry of a plan, how they are told, and what is said where they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from calibrate.deciding.objective import Costing, Objective, profile_workload
from calibrate.deciding.space import Space
from planner.cli import cli
from planner.engines import Handover, carried, engine, engine_names, hand_over, nearest, portability
from planner.errors import InputError, PlanError, PlanMismatchError
from planner.evidence import Evidence, Measured, Point, Promise, Row, Rung, Search
from planner.plan import Decision, Plan, predict
from planner.policies import names, parse, policy_class
from planner.profile import ModelIdentity
from planner.report.plan_view import describe
from planner.schedule import Select, Threshold
from planner.spec import ModelSpec, shipped_model
from planner.spec.config import families
from planner.workload import Workload
from tests.planted import SPEC, planted_profile

VISUAL = 144
AS_VLLM = "per=picture,positions=packed"
#: A plan for every route of every engine but transformers, which takes any.
TAKEN = {
    ("vllm", 0): ("llava-1.5-7b", f"prellm:keep=0.25,{AS_VLLM}"),
    ("vllm", 1): ("llava-next-7b", f"diverse:keep=0.25,{AS_VLLM}"),
    ("vllm", 2): ("qwen2.5-vl-7b", "diverse:keep=0.25,per=picture"),
    ("vllm", 3): ("qwen2.5-vl-7b", "evs:keep=0.25,per=picture"),
    ("vllm", 4): ("qwen2.5-vl-7b", "vidcom2:keep=0.25,per=picture"),
    ("openvino", 0): ("qwen2.5-vl-7b", f"cdpruner:keep=0.25,{AS_VLLM}"),
    ("openvino", 1): ("qwen3-vl-8b", f"cdpruner:keep=0.25,{AS_VLLM}"),
    ("trt-edge", 0): ("qwen2.5-vl-7b", "dart:keep=0.25,pivots=6,per=picture"),
    ("llamacpp", 0): ("qwen2-vl-7b", "resize:keep=0.25,per=picture"),
    ("transformers", 0): ("llava-1.5-7b", "visipruner:filter=8,keep=10,exit=24"),
}
#: Keys that policies cannot do without.
GIVEN = {"visipruner": "filter=8", "vtw": "k=8", "var": "dims=1/2", "shortv": "layers=4/5", "context": "protect=4"}
INSIDE = "visipruner:filter=3,keep=20,exit=7,visual_attention=self"


def plan_for(model: str, policy: str, evidence: Evidence | None = None, visual: int | None = VISUAL) -> Plan:
    config = shipped_model(model)["config"]
    spec = ModelSpec.from_config(config)
    workload = Workload(visual_tokens=visual or VISUAL)
    schedule = parse(policy).schedule(spec, workload)
    identity = ModelIdentity(
        id=model, family=spec.family, config=config, config_digest=spec.digest, layers=spec.layers,
        hidden_size=spec.hidden_size, image_token_id=spec.image_token_id,
    )  # fmt: skip
    return Plan(
        model=identity,
        decision=Decision(policy=str(parse(policy)), schedule=schedule),
        prediction=() if visual is None else (predict(spec, workload, schedule),),
        evidence=evidence,
    ).sealed()


def spelled(policy: str) -> str:
    """A policy with no key but those that it needs."""
    return f"{policy}:{GIVEN[policy]}" if policy in GIVEN else policy


def level(name: str, model: str, policy: str) -> str:
    made = plan_for(model, policy)
    return next(one.level for one in portability(made) if one.engine.name == name)


def test_every_route_is_taken_and_filled_in() -> None:
    routes = {(name, i) for name in engine_names() for i in range(len(engine(name).routes))}
    assert routes == set(TAKEN), "TAKEN needs a plan for every route"
    for (name, i), (model, policy) in TAKEN.items():
        made = plan_for(model, policy)
        route = engine(name).routes[i]
        assert carried(engine(name), made.decision.schedule, ModelSpec.from_config(model), VISUAL).route == route
        told = hand_over(made, engine(name), "plan.json")
        assert "{" not in told.command and told.versions.startswith(engine(name).package)
        assert Handover.parse(json.loads(json.dumps(told.content()))) == told
        assert set(route.families) <= set(families("vlm"))
        assert engine(name).sources


def test_what_is_carried_is_told_and_the_rest_refused() -> None:
    """The table of `plan show` and `plan export` never contradict each other, for any policy and engine."""
    # ToMe merges patches of pictures of one size, which Qwen's are not.
    for policy in sorted({*names()} - {"dense", "tome"}):
        made = plan_for("qwen2.5-vl-7b", spelled(policy))
        for found in portability(made):
            if found.level == "no":
                assert found.why and found.route is None
                with pytest.raises(PlanMismatchError, match=found.engine.title):
                    hand_over(made, found.engine)
            else:
                told = hand_over(made, found.engine)
                assert (told.portable, told.lost) == (found.level, found.why)
                assert (told.portable == "exact") == (not told.lost)


def test_vllm_carries_exactly_what_it_does() -> None:
    told = hand_over(plan_for("llava-1.5-7b", f"diverse:keep=36,{AS_VLLM}"), engine("vllm"), "my plan.json")
    assert (told.portable, told.lost, told.positions) == ("exact", (), "packed")
    assert told.command == "VLM_PLAN='my plan.json' vllm serve llava-1.5-7b"
    assert told.plugin == "vlm-planner[vllm]"


def test_what_differs_makes_it_approximate() -> None:
    told = hand_over(plan_for("llava-1.5-7b", "diverse:keep=0.25"), engine("vllm"))
    assert told.portable == "approximate"
    assert ["positions" in told.lost[0], "more than one picture" in told.lost[1], len(told.lost)] == [True, True, 2]


@pytest.mark.parametrize(
    "policy",
    [*(f"{name}:keep=0.25,{AS_VLLM}" for name in ("cdpruner", "evs")), "blind", "random", "fastv"],
)
def test_what_vllm_cannot_do(policy: str) -> None:
    assert level("vllm", "llava-1.5-7b", policy) == "no"


@pytest.mark.parametrize("model", ["llava-1.5-7b", "llava-next-7b"])
def test_a_picture_draws_its_tokens_in_vllm_too(model: str) -> None:
    assert level("vllm", model, f"prellm:keep=0.25,rank_by=random,{AS_VLLM}") == "exact"
    assert level("vllm", model, "random:k=0") == "approximate", "it has original positions, and a budget for a prompt"


def test_the_attention_of_an_encoder_is_seen_in_one_family() -> None:
    for name in ("prellm", "vispruner"):
        assert level("vllm", "llava-1.5-7b", f"{name}:keep=0.25,{AS_VLLM}") == "exact"
        assert level("vllm", "llava-next-7b", f"{name}:keep=0.25,{AS_VLLM}") == "no"


@pytest.mark.parametrize("model", ["llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b", "gemma-4-26b-a4b"])
def test_the_plugin_takes_what_the_facts_say(model: str, tmp_path: Path) -> None:
    """Whatever vLLM has flags of its own for is left out."""
    plugin = pytest.importorskip("planner.vllm_plugin.carried")
    for policy in sorted({*names()} - {"dense", "evs", "vidcom2", "tome"}):
        made = plan_for(model, spelled(policy))
        path = tmp_path / f"{policy}.json"
        made.save(path)
        found = carried(engine("vllm"), made.decision.schedule, ModelSpec.from_config(made.model.config), VISUAL)
        if found.level == "no":
            with pytest.raises(PlanError):
                plugin.carried(str(path))
        else:
            assert len(plugin.carried(str(path)).differences) == len(found.why)


def test_positions_on_several_axes_cannot_be_packed() -> None:
    assert level("vllm", "qwen2.5-vl-7b", "diverse:keep=0.25,per=picture") == "exact"
    assert level("vllm", "qwen2.5-vl-7b", f"diverse:keep=0.25,{AS_VLLM}") == "no"


def test_an_engine_without_tiles_has_no_budget_for_each() -> None:
    assert level("trt-edge", "qwen2.5-vl-7b", "dart:keep=0.25,per=tile") == "no"


@pytest.mark.parametrize("name", engine_names())
def test_there_is_nothing_to_tell_of_a_dense_plan(name: str) -> None:
    assert level(name, "llava-1.5-7b", "dense") == "exact"
    with pytest.raises(PlanMismatchError, match="changes nothing"):
        hand_over(plan_for("llava-1.5-7b", "dense"), engine(name))


def test_a_share_is_rounded_to_what_the_engine_takes() -> None:
    told = hand_over(plan_for("qwen2.5-vl-7b", f"cdpruner:keep=0.3333,{AS_VLLM}"), engine("openvino"))
    assert told.flags == {"--pruning_ratio": "67", "--relevance_weight": "0.5"}
    assert told.environment == {"CDPRUNER_SPLIT_THRESHOLD": "0"}
    assert "the share that is dropped, 0.6667, becomes 0.67" in told.lost
    exact = hand_over(plan_for("qwen2.5-vl-7b", f"cdpruner:keep=0.25,{AS_VLLM}"), engine("openvino"))
    assert exact.flags["--pruning_ratio"] == "75" and len(exact.lost) == len(told.lost) - 1
    assert level("openvino", "qwen2.5-vl-7b", f"cdpruner:keep=0.999,{AS_VLLM}") == "no", "it would prune nothing"


def test_a_number_becomes_a_share_of_the_mean_prompt() -> None:
    policy = "dart:keep=36,pivots=6,per=picture"
    told = hand_over(plan_for("qwen2.5-vl-7b", policy), engine("trt-edge"))
    assert told.flags == {"--visualPrune": "", "--dartReductionRatio": "0.75", "--dartPivotImageTokens": "6"}
    assert told.command.endswith("--visualPrune --dartReductionRatio 0.75 --dartPivotImageTokens 6")
    assert "36 tokens become a share: 0.25 of 144, and as much of any picture" in told.lost
    assert told.positions == "original"
    with pytest.raises(PlanMismatchError, match="does not say of how many"):
        hand_over(plan_for("qwen2.5-vl-7b", policy, visual=None), engine("trt-edge"))


def test_how_many_stay_must_be_known_beforehand() -> None:
    made = plan_for("llava-1.5-7b", f"diverse:keep=0.25,{AS_VLLM}")
    entry = Select(rank_by="encoder_norm", keep=Threshold(threshold=0.5, at_most=100), per="picture")
    schedule = made.decision.schedule.model_copy(update={"entry": entry})
    spec = ModelSpec.from_config(made.model.config)
    assert carried(engine("vllm"), schedule, spec).why == ("how many tokens stay must be known beforehand",)
    assert carried(engine("transformers"), schedule, spec).level == "exact"


def test_a_share_becomes_a_limit() -> None:
    told = hand_over(plan_for("qwen2-vl-7b", "resize:keep=0.25,per=picture"), engine("llamacpp"))
    assert told.flags == {"--image-max-tokens": "36"}
    assert any("it is a limit" in loss for loss in told.lost)
    assert level("llamacpp", "llava-1.5-7b", "resize:keep=0.25,per=picture") == "no", "its pictures have one size"
    assert level("llamacpp", "qwen2-vl-7b", "pool:keep=0.25,per=picture") == "no", "tokens are not pooled there"


def test_a_plan_inside_the_decoder_is_refused_and_its_stages_are_named() -> None:
    made = plan_for("llava-1.5-7b", f"diverse:keep=0.5+{INSIDE}")
    with pytest.raises(PlanMismatchError) as caught:
        hand_over(made, engine("vllm"))
    cause = caught.value.cause
    assert "layers 0 to 2 visual_attention=self and text_to_visual=none and cache_visual=none" in cause
    assert "layer 3 keep 20 by influence_l2; layers 4 to 6 drop the image" in cause
    assert "layers 7" not in cause, "nothing is lost there"
    assert "None of the plans that were measured" in caught.value.remedy and "--portable vllm" in caught.value.remedy
    assert hand_over(made, engine("transformers")).portable == "exact"


def rung(policy: str, share: float, loss: float, proven: bool) -> Rung:
    return Rung(policy=policy, share=share, loss=loss, misses=1, n=213, pictures=213, p=0.1, proven=proven, bound=0.05)


def measured(rungs: list[Rung], front: list[tuple[str, float, float]]) -> Evidence:
    points = tuple(
        Point(policy=policy, share=share, loss=Measured(value=loss, low=0, high=0.1, n=64))
        for policy, share, loss in front
    )
    return Evidence(
        profile_sha256="p" * 64, calibration_digest="c" * 64, calibration_n=256, evaluation_digest=None, rows=(),
        promise=Promise(loss="answer", limit=0.02, confidence=0.8, proven=True, rungs=3, tested=tuple(rungs)),
        search=Search(minimised="decoder FLOPs", candidates=9, executed=4, front=points),
    )  # fmt: skip


def test_the_nearest_plan_is_the_cheapest_that_was_proven() -> None:
    rungs = [
        rung("diverse:keep=0.5", 0.5, 0.0, True),
        rung("dart:keep=0.25", 0.3, 0.01, True),
        rung(INSIDE, 0.2, 0.01, True),
        rung("dart:keep=0.1", 0.1, 0.03, False),
    ]
    front = [("diverse:keep=0.06", 0.08, 0.015), ("nonsense:k=1", 0.01, 0.0)]
    made = plan_for("llava-1.5-7b", INSIDE, measured(rungs, front))
    found = nearest(made, engine("vllm"))
    assert found is not None and found.policy == "dart:keep=0.25" and found.proven
    assert "0.300 of dense decoder FLOPs, mean loss 0.0100 on 213 samples" in found.evidence
    with pytest.raises(PlanMismatchError, match=r"dart:keep=0\.25: 0\.300 of dense decoder FLOPs.*`plan freeze"):
        hand_over(made, engine("vllm"))


def test_the_nearest_plan_where_none_was_proven() -> None:
    rungs = [rung(INSIDE, 0.2, 0.01, True), rung("dart:keep=0.1", 0.1, 0.03, False)]
    within = [("diverse:keep=0.06", 0.08, 0.015), ("diverse:keep=0.125", 0.15, 0.01)]
    found = nearest(plan_for("llava-1.5-7b", INSIDE, measured(rungs, within)), engine("vllm"))
    assert found is not None and found.policy == "diverse:keep=0.06" and "not proven" in found.evidence
    beyond = [("diverse:keep=0.06", 0.08, 0.5)]
    found = nearest(plan_for("llava-1.5-7b", INSIDE, measured(rungs, beyond)), engine("vllm"))
    assert found is not None and found.policy == "dart:keep=0.1", "the one that lost least"
    assert nearest(plan_for("llava-1.5-7b", INSIDE, measured([], [])), engine("vllm")) is None


def test_other_policies_that_were_evaluated_count_too() -> None:
    agreed = Measured(value=0.968, low=0.955, high=0.977, n=1000)
    row = Row(
        policy="resize:keep=0.26", role="policy", accuracy=None, agreement=agreed, decoder_flops=1.0,
        decoder_flops_ratio=0.289, visual_attention_ratio=0.1, kv_cache_bytes=1.0, kv_cache_ratio=0.3, prefill_ms=None,
    )  # fmt: skip
    plan_row = row.model_copy(update={"policy": "diverse:keep=0.25", "role": "plan"})
    evidence = measured([], []).model_copy(update={"rows": (plan_row, row)})
    found = nearest(plan_for("llava-1.5-7b", INSIDE, evidence), engine("vllm"))
    assert found is not None and (found.policy, found.share) == ("resize:keep=0.26", 0.289)
    assert found.loss == pytest.approx(0.032)
    assert found.evidence == (
        "0.289 of dense decoder FLOPs, 0.968 (0.955-0.977) of 1000 whole answers as dense, on samples that the "
        "decision never saw, not proven"
    )


def test_the_search_measures_what_the_engine_will_do() -> None:
    costing = Costing(SPEC, profile_workload(planted_profile(), 8), Objective(portable="vllm"))
    space = Space(planted_profile(), costing)
    policies = [one.policy for family in space.families for one in family.members]
    assert {type(policy) for policy in policies} > {policy_class("diverse"), policy_class("prellm")}
    for one in (one for family in space.families for one in family.members):
        assert one.schedule.positions == "packed" and one.schedule.entry is not None
        assert carried(engine("vllm"), one.schedule, SPEC).level == "exact"
    assert not Space(planted_profile(), Costing(SPEC, costing.workload, Objective(portable="openvino"))).families
    with pytest.raises(InputError, match="llamacpp, openvino, transformers, trt-edge, vllm"):
        Objective(portable="vlm")


def test_a_plan_of_a_family_that_is_not_known_here_is_shown_all_the_same() -> None:
    made = plan_for("llava-1.5-7b", "diverse")
    assert "Portable" in describe(made) and "vllm" in describe(made)
    unknown = made.model_copy(update={"model": made.model.model_copy(update={"config": {"model_type": "gone"}})})
    assert "Portable" not in describe(unknown) and "max_min_distance" in describe(unknown)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_the_verb_writes_the_document_and_prints_the_command(tmp_path: Path) -> None:
    plan_for("llava-1.5-7b", "diverse:keep=0.25").save(tmp_path / "plan.json")
    done = run("export", tmp_path / "plan.json", "--to", "vllm", "-o", tmp_path / "told.json")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"VLM_PLAN={tmp_path / 'plan.json'} vllm serve llava-1.5-7b\n"
    told = Handover.load(tmp_path / "told.json")
    assert told.environment == {"VLM_PLAN": str(tmp_path / "plan.json")}
    assert all(loss in done.stderr for loss in told.lost) and told.lost
    refused = run("export", tmp_path / "plan.json", "--to", "openvino", "-o", tmp_path / "none.json")
    assert isinstance(refused.exception, PlanMismatchError) and not (tmp_path / "none.json").exists()


def test_an_engine_is_told_where_a_bundled_model_lies(tmp_path: Path) -> None:
    made = plan_for("llava-1.5-7b", "diverse:keep=0.25")
    named = made.model.model_copy(update={"id": "reference/windowed"})
    made.model_copy(update={"model": named}).sealed().save(tmp_path / "plan.json")
    done = run("export", tmp_path / "plan.json", "--to", "vllm", "-o", tmp_path / "told.json")
    assert done.exit_code == 0, done.output
    assert (Path(done.stdout.split()[-1]) / "config.json").is_file()
