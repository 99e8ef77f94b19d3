"""What a plan is bound to: weights, adapters, processor; what of a configuration it holds; what is refused."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

import pytest
import torch

from calibrate.inputs.bundled import reference_path
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import identify
from calibrate.inputs.load import load
from calibrate.measuring.reuse import take_profile
from calibrate.measuring.run import merge_states
from calibrate.measuring.state import SUFFIX
from planner import load_plan
from planner.errors import CalibrationError, InputError, PlanMismatchError, UnsupportedModelError
from planner.plan import Decision, Plan
from planner.policies import parse
from planner.profile import processor_differences
from planner.runtime import ImageStream
from planner.runtime.model.weights import weights_of
from planner.spec import ModelSpec
from planner.spec.read import facts_of
from planner.weights import compare
from tests import tiny
from tests.integration import calibrate_stub as stub
from tests.schedules import LAYERS


def fresh(family: str = "llava") -> Any:
    return tiny.model(family, dtype=torch.float32, layers=LAYERS, fresh=True)


def plan_of(model: Any) -> Plan:
    known, policy = identify(model, "tiny"), parse("visipruner:filter=1,keep=4,exit=3")
    decision = Decision(policy=str(policy), schedule=policy.schedule(known.spec))
    return Plan(model=known.identity, decision=decision).sealed()


def layers(model: Any) -> Any:
    return model.model.language_model.layers


def exchanged() -> Any:
    model = fresh()
    stack = layers(model)
    first, second = (copy.deepcopy(stack[index].state_dict()) for index in (1, 2))
    stack[1].load_state_dict(second)
    stack[2].load_state_dict(first)
    return model


def noisy() -> Any:
    model = fresh()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * parameter.std() * torch.randn_like(parameter))
    return model


def other_training() -> Any:
    return tiny.model("llava", dtype=torch.float32, layers=LAYERS, seed=5, fresh=True)


@pytest.mark.parametrize("others", [exchanged, noisy, other_training])
def test_other_weights_are_refused_with_the_remedy_and_allowed_on_demand(others, caplog):
    plan, model = plan_of(fresh()), others()
    with pytest.raises(PlanMismatchError, match=r"other weights of tiny: .* differ, .* for one") as caught:
        plan.attach(model)
    assert "--allow-other-weights" in caught.value.remedy
    with pytest.raises(PlanMismatchError), plan.apply(model):
        pass
    with pytest.raises(PlanMismatchError):
        plan.encode_image(model, **tiny.inputs("llava"))
    with caplog.at_level(logging.WARNING), plan.apply(model, allow_other_weights=True) as handle:
        model(**tiny.inputs("llava"))
        assert handle.report is not None
    assert "other weights than those of tiny are allowed" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_are_accepted_without_a_word(dtype, caplog):
    with caplog.at_level(logging.WARNING), plan_of(fresh()).apply(fresh().to(dtype)):
        pass
    assert not caplog.records


def test_one_weight_that_is_not_a_number_is_named_at_load_and_where_the_plan_is_used():
    plan, model = plan_of(fresh()), fresh()
    with torch.no_grad():
        layers(model)[2].mlp.up_proj.weight[3, 4] = float("nan")
    for use in (lambda: identify(model, "tiny"), lambda: plan.attach(model)):
        with pytest.raises(InputError, match=r"not finite: model\.language_model\.layers\.2\.mlp\.up_proj\.weight"):
            use()


def test_a_model_on_meta_is_refused_by_name():
    model = fresh().to("meta")
    with pytest.raises(UnsupportedModelError, match="on no device"):
        plan_of(fresh()).attach(model)


def lora(init: bool, model: Any = None) -> Any:
    """Adapters on two projections; with `init` as PEFT starts them, doing nothing."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=init, target_modules=r".*language_model.*\.(q_proj|down_proj)"
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        return peft.get_peft_model(model if model is not None else fresh(), config).eval()


def test_adapters_count_for_what_they_do():
    bare, adapted = plan_of(fresh()), plan_of(lora(init=False))
    with bare.apply(lora(init=True)):
        pass  # untrained adapters change nothing
    with pytest.raises(PlanMismatchError, match=f"{2 * LAYERS} of .* tensors differ"):
        bare.attach(lora(init=False))
    trained = lora(init=False)
    with trained.disable_adapter(), bare.apply(trained):
        pass  # the base
    with adapted.apply(lora(init=False)), pytest.raises(PlanMismatchError):
        adapted.attach(fresh())
    in_place = lora(init=False)
    in_place.merge_adapter()
    with adapted.apply(in_place):
        pass
    with adapted.apply(lora(init=False).merge_and_unload()):
        pass
    with adapted.apply(lora(init=False).merge_and_unload().to(torch.bfloat16)):
        pass
    with pytest.raises(PlanMismatchError):
        bare.attach(lora(init=False).merge_and_unload())


def test_adapters_that_are_no_sum_are_other_weights():
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    with pytest.raises(PlanMismatchError, match="in one of them only"):
        plan_of(fresh()).attach(peft.get_peft_model(fresh(), config).eval())


def test_modules_that_are_trained_whole_count_while_they_are_used():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped = peft.get_peft_model(fresh(), config).eval()
    plan = plan_of(fresh())
    with plan.apply(wrapped):
        pass
    with torch.no_grad():
        wrapped.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.1)
    with pytest.raises(PlanMismatchError, match=r"lm_head\.weight"):
        plan.attach(wrapped)
    with wrapped.disable_adapter(), plan.apply(wrapped):
        pass


@pytest.mark.parametrize("family", tiny.VISION)
def test_every_family_has_a_fingerprint_that_its_casts_share(family):
    model, cast = (tiny.model(family, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    found = compare(weights_of(model), weights_of(cast))
    assert not found.reason and found.compared >= len(list(model.parameters()))


def test_a_plan_of_before_is_taken_and_labelled(tmp_path, caplog):
    plan = plan_of(fresh())
    identity = plan.model.model_copy(update={"weights": None})
    old = plan.model_copy(update={"model": identity}).sealed()
    old.save(tmp_path / "plan.json")
    assert "weights" not in json.loads((tmp_path / "plan.json").read_text())["model"], "as it was written then"
    back = load_plan(tmp_path / "plan.json")
    assert back == old and back.content()["plan_sha256"] == old.plan_sha256
    assert "before plans were bound to weights" in back.check_model(noisy())
    with caplog.at_level(logging.WARNING), back.apply(noisy()):
        pass
    assert not caplog.records


def test_a_fingerprint_survives_storage(tmp_path):
    plan = plan_of(fresh())
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").model.weights == weights_of(fresh())


def test_an_image_stream_of_other_weights_is_refused(tmp_path):
    plan = plan_of(fresh())
    plan.encode_image(fresh(), **tiny.inputs("llava")).save(tmp_path / "image.safetensors")
    stream, model = ImageStream.load(tmp_path / "image.safetensors"), fresh()
    with plan.apply(model, image_stream=stream):
        pass
    with torch.no_grad():
        layers(model)[3].mlp.up_proj.weight[5, 5] = 9.0  # among the many that no sample meets
    with pytest.raises(PlanMismatchError, match="made by another model"):
        plan.attach(model, image_stream=stream, allow_other_weights=True)


def test_no_secret_and_no_path_of_a_configuration_is_kept():
    model = fresh()
    model.config.api_token = "hf_secret"
    model.config._name_or_path = "/home/me/models/tiny"
    for block in (model.config.text_config, model.config.vision_config):
        block._name_or_path = "/home/me/models/part"
        block.wandb_key = {"user": "me", "key": "hf_secret"}
        block.label2id = {"secret project": 0}
    text = json.dumps(identify(model, "tiny").identity.model_dump(mode="json"))
    for word in ("hf_secret", "/home/me", "wandb", "secret project", "me/models", 'token"'):
        assert word not in text


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_kept_of_a_configuration_is_what_a_spec_needs(family):
    whole = json.loads(tiny.config(family).to_json_string(use_diff=False))
    kept = facts_of({**whole, "api_token": "x"})
    assert "api_token" not in kept and len(json.dumps(kept)) < len(json.dumps(whole))
    one, other = ModelSpec.from_config(whole), ModelSpec.from_config(json.loads(json.dumps(kept)))
    assert one.digest == other.digest and one.images == other.images and one.projector == other.projector


def test_states_and_profiles_of_other_weights_are_not_united(tmp_path):
    chosen = stub.samples(tmp_path, count=4)
    ordinary = {"probes": ("influence",), "settings": {}}
    stub.run(chosen, stub.model(), out=tmp_path / "a", shard=(0, 2), **ordinary)
    others = stub.model(fresh=True)
    with torch.no_grad():
        others.lm_head.weight.mul_(1.001)
    stub.run(chosen, others, out=tmp_path / "b", shard=(1, 2), **ordinary)
    parts = [next((tmp_path / name).glob(f"*{SUFFIX}")) for name in "ab"]
    with pytest.raises(CalibrationError, match=r"another run: weights \(1 of .* tensors differ\) differ"):
        merge_states(parts)
    with pytest.raises(CalibrationError, match="weights"):
        stub.run(chosen, others, out=tmp_path / "a", shard=(0, 2), resume=True, **ordinary)
    profile = stub.run(chosen, stub.model(), **ordinary)
    profile.save(tmp_path / "profile.json")
    encoder = Encoder(stub.Processor(), (tiny.configs.IMAGE,))
    take_profile(tmp_path / "profile.json", identify(stub.model(), "model"), chosen, encoder)
    with pytest.raises(CalibrationError, match="measured with other weights of model"):
        take_profile(tmp_path / "profile.json", identify(others, "model"), chosen, encoder)


@pytest.fixture(scope="module")
def processor() -> Any:
    return load(str(reference_path("plain"))).processor


def settings(processor: Any) -> dict[str, Any]:
    return Encoder(processor, (3,)).settings()


def test_processor_tokenizer_and_template_are_told_apart(processor):
    before = settings(processor)
    assert processor_differences(before, settings(copy.deepcopy(processor))) == []
    brighter = copy.deepcopy(processor)
    brighter.image_processor.image_mean = [0.1, 0.1, 0.1]
    (found,) = processor_differences(before, settings(brighter))
    assert found.startswith("image_mean (") and "[0.1, 0.1, 0.1]" in found
    bare = copy.deepcopy(processor)
    bare.chat_template = bare.tokenizer.chat_template = None
    assert processor_differences(before, settings(bare)) == ["the chat template, which one of them lacks"]
    more = copy.deepcopy(processor)
    more.tokenizer.add_tokens(["<new>"])
    assert processor_differences(before, settings(more)) == ["the tokenizer"]
    unknown = copy.deepcopy(processor)
    unknown.image_processor.api_token = "hf_secret"
    assert "hf_secret" not in json.dumps(settings(unknown))
    assert processor_differences(before, settings(unknown)) == ["a setting of the image processor"]
    assert processor_differences({"class": "LlavaProcessor"}, before) == [], "older documents know less"


def test_a_tokenizer_in_use_keeps_its_digest(processor):
    before = settings(processor)
    processor.tokenizer(["a", "a b"], padding=True, truncation=True, max_length=2)
    assert settings(processor) == before
