"""What is Gemma 3n's alone: several hidden states a token, a convolutional tower, sounds, and the sizes it comes in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from calibrate.probes.attribution.parts import find_attribution_parts
from calibrate.probes.masking.executed import Executed
from calibrate.probes.masking.replay import Replay
from planner.cost import cost, sweep
from planner.cost.memory import weights_stored
from planner.errors import InputError, UnsupportedModelError
from planner.policies import VisiPruner
from planner.runtime import attach, observe
from planner.runtime.count import FlopCounter
from planner.schedule import Count, Fraction, Schedule, Select, Stage
from planner.spec import ModelSpec
from planner.spec.config import Config, family
from planner.spec.towers import mobilenet_v5
from planner.workload import Workload
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation, logits
from tests.integration.test_cost_counted import BATCH, workload_of
from tests.integration.test_families_counted import matrices
from tests.integration.test_runtime_equality import TOLERANCE, difference
from tests.reference import run
from tests.schedules import LAYERS, SCHEDULES, select
from tests.tiny.gemma3n import SOUNDS

E4B = "gemma-3n-e4b"


def ends(select: Select, **rule: Any) -> Schedule:
    """A selection behind the last layer."""
    first = Stage(first=0, last=1)
    return Schedule(stages=(first, Stage.model_validate({"first": 1, "last": LAYERS, "selects": (select,), **rule})))


@pytest.mark.parametrize(
    "schedule",
    [
        ends(select("last_attention", 3), cache_visual="kept"),
        ends(select("attention_received", 0.5, of="context", protect=2)),
        ends(select("attention_received", 0.5, of="context", protect=2), visual_attention="self", cache_visual="kept"),
        ends(select("random", 3), visual_attention="prefix", text_to_visual="none", cache_visual="none"),
        SCHEDULES["skip"],
        SCHEDULES["probe"],
    ],
)
def test_what_runs_around_attention_is_counted(schedule: Schedule) -> None:
    """Behind the last layer, for each hidden state but one, a matrix runs on what selections leave there, and on no
    visual row that is isolated. Where keys alone are wanted of a layer, what stands before its attention runs."""
    model, inputs = tiny.model("gemma3n", layers=LAYERS), tiny.inputs("gemma3n", batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of("gemma3n", spec, inputs), schedule, head="all")
    with attach(model, schedule), torch.no_grad(), FlopCounter() as counter:
        model(**inputs)
    assert counter.total == expected.prefill_flops


def test_scores_read_the_state_that_a_layer_runs_on() -> None:
    """The probes' views, too: one of three, by the configuration the second."""
    model, inputs = tiny.model("gemma3n", layers=LAYERS), tiny.inputs("gemma3n", batch=BATCH)
    given, seen = [], []
    tower = model.model.language_model
    hooks = [layer.register_forward_pre_hook(lambda _, args: given.append(args[0].clone())) for layer in tower.layers]
    with torch.no_grad(), observe(model, lambda view: seen.append(view.hidden)):
        model(**inputs)
    for hook in hooks:
        hook.remove()
    assert all(one.shape == (3, BATCH, inputs["input_ids"].shape[1], 32) for one in given)
    assert all(torch.equal(one[1], view) for one, view in zip(given, seen, strict=True))


def with_sound(inputs: dict[str, torch.Tensor], second: bool) -> dict[str, torch.Tensor]:
    """A sound of six tokens before the picture."""
    generator = torch.Generator().manual_seed(1 + second)
    ids = inputs["input_ids"]
    ids = torch.cat([ids[:, :2], torch.full((len(ids), 6), SOUNDS), ids[:, 2:]], dim=1)
    return {
        **inputs,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": torch.randn(len(ids), 96, 16, generator=generator, dtype=torch.float64),
        "input_features_mask": torch.ones(len(ids), 96, dtype=torch.bool),
    }


@pytest.mark.parametrize("name", ["visipruner", "context-fastv", "prellm-visipruner"])
def test_sounds_are_words_to_a_plan(name: str) -> None:
    """They stay, as text does, and are encoded once, with the prompt."""
    model = tiny.model("gemma3n", layers=LAYERS)
    inputs, other = (with_sound(tiny.inputs("gemma3n", batch=2), second) for second in (False, True))
    generated = continuation(2)
    outcome = run(model, inputs, SCHEDULES[name], generated)
    together = {**inputs, "input_ids": torch.cat([inputs["input_ids"], generated], dim=1)}
    together["attention_mask"] = torch.ones_like(together["input_ids"])
    with attach(model, SCHEDULES[name]) as handle:
        found = logits(model, inputs, generated)
        with torch.no_grad(), float64_throughout(), handle.scoring([inputs["input_ids"].shape[1]] * 2):
            scored = model(**together).logits[:, -1 - generated.shape[1] :]
        heard = logits(model, other, generated)
    wanted = [outcome.prefill, *outcome.steps]
    assert difference(found, wanted) < TOLERANCE
    assert difference(list(scored.unbind(1)), wanted) < TOLERANCE
    assert difference(heard, wanted) > 1e-3


def test_what_takes_rows_through_layers_by_itself_is_refused_and_executed_instead() -> None:
    model, inputs = tiny.model("gemma3n", layers=LAYERS), tiny.inputs("gemma3n", batch=2)
    with pytest.raises(UnsupportedModelError, match="gemma3n take several hidden states a token"):
        find_attribution_parts(model)
    with pytest.raises(UnsupportedModelError, match="layer by layer, needs layers that take one hidden state"):
        Replay(model, inputs)
    with pytest.raises(UnsupportedModelError, match="gemma4 take inputs of their own"):
        Replay(tiny.model("gemma4", layers=LAYERS), tiny.inputs("gemma4"))
    executed = Executed(model, inputs, LAYERS)
    assert executed.able("alone_before") == list(range(1, LAYERS + 1))
    assert (executed.point("masked_from", 2, [0, 1]) - executed.dense).abs().max() > 1e-3


def test_sweeps_are_single_costs() -> None:
    """Of a filtering layer that is the last one, too."""
    spec, workload = ModelSpec.from_config(E4B), Workload(visual_tokens=256)
    filters, exits = [0, 4, 33, 34], [9, 20, 35, 35]
    found = sweep(spec, workload, VisiPruner, filter=filters, keep=20, exit=exits).prefill_flops
    single = (
        cost(spec, workload, VisiPruner(filter=first, keep=20, exit=last).schedule(spec, workload)).prefill_flops
        for first, last in zip(filters, exits, strict=True)
    )
    assert found.tolist() == list(single)


# -- the sizes of its classes ------------------------------------------------------------------------------------------


def test_matrices_of_the_text_class() -> None:
    """The whole class needs timm; the text decoder's does not. Its tables are in what the weights take."""
    config = transformers.Gemma3nTextConfig()
    with torch.device("meta"):
        model = transformers.Gemma3nForCausalLM(config)
    spec = ModelSpec.from_config(config.to_dict())
    layers = sum(layer.attention.projection_macs + layer.ffn.dense_macs for layer in spec.decoder.layers)
    assert matrices(model, ("lm_head",)) == pytest.approx(layers, rel=1e-3)
    stored = sum(weights_stored(spec, Workload(visual_tokens=1, weight_bits=8)).values())
    assert stored == pytest.approx(sum(parameter.numel() for parameter in model.parameters()), rel=1e-3)


def test_the_shipped_model_is_the_class() -> None:
    """Its blocks, with every default of the class written out."""
    written = {
        "model_type": "gemma3n",
        "text_config": transformers.Gemma3nTextConfig().to_dict(),
        "vision_config": dict(vars(transformers.Gemma3nVisionConfig()), model_type="gemma3n_vision"),
        "audio_config": transformers.Gemma3nAudioConfig().to_dict(),
        "vision_soft_tokens_per_image": 256,
        "image_token_id": 262145,
    }
    assert ModelSpec.from_config(written).digest == ModelSpec.from_config(E4B).digest


def tower_of(**vision: Any) -> Any:
    return mobilenet_v5(Config(vision, "vision_config", family("gemma3n_vision", "tower")), "gemma3n_vision")


def test_the_tower_by_hand() -> None:
    """The first convolution, the first and the last block, and one attention on 48 x 48 positions of which each four
    share a key."""
    tower = tower_of()
    assert tower.patch_macs == 3 * 3 * 3 * 64
    first, last = tower.blocks[0], tower.blocks[-1]
    assert (first.patches, first.macs) == (4, 3 * 3 * 64 * 256 + 256 * 128)
    assert (last.patches, last.macs) == (64, (640 + 1280) * 3840 + 3840 * 2048)
    shared = next(block for block in tower.blocks if block.pair_macs)
    assert (shared.repeat, shared.patches, shared.macs) == (14, 64, 2 * 640 * 768)
    assert shared.pair_macs * (48 * 48) ** 2 == 2 * 768 * (48 * 48) * (24 * 24)


def test_the_tower_is_what_timm_runs() -> None:
    """Counted on a picture of 768 pixels, without weights; and its matrices, within a thousandth."""
    pytest.importorskip("timm", reason="the tower is timm's")
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.Gemma3nVisionConfig()).eval()
        with torch.no_grad(), FlopCounter() as counter:
            output = model(torch.empty(1, 3, 768, 768), do_pooling=False).last_hidden_state
    assert output.shape == (1, 2048, 16, 16)
    spec = ModelSpec.from_config(E4B)
    seen = cost(spec, Workload(visual_tokens=256), Schedule(stages=(Stage(first=0, last=spec.layers),))).prefill
    assert counter.total == seen["vision"]
    stored = weights_stored(spec, Workload(visual_tokens=1, weight_bits=8))["vision"]
    assert stored == pytest.approx(sum(parameter.numel() for parameter in model.parameters()), rel=1e-3)


@pytest.mark.parametrize("vision", [{"architecture": "resnet50"}, {"model_args": {"channel_multiplier": 0.5}}])
def test_another_tower_is_refused(vision: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"vision encoder '\w+'.* is not known.*mobilenetv5_300m_enc"):
        tower_of(**vision)


@pytest.mark.parametrize("widths", [[40] * 3, [40, 0, 40, 40], "wide"])
def test_widths_that_are_not_one_a_layer(widths: Any) -> None:
    config = copy.deepcopy(tiny.config("gemma3n", layers=4).to_dict())
    config["text_config"]["intermediate_size"] = widths
    with pytest.raises(InputError, match="intermediate_size"):
        ModelSpec.from_config(config)


def test_papers_know_of_one_width() -> None:
    spec = ModelSpec.from_config(tiny.config("gemma3n", layers=4).to_dict())
    assert spec.decoder.intermediate_size == 44 and len({layer.ffn.dense_macs for layer in spec.decoder.layers}) > 1


def test_half_of_the_tokens_do_not_halve_what_runs_in_front() -> None:
    """By hand: two of three hidden states, words of pictures and of sounds, and each layer's input, for every token."""
    spec = ModelSpec.from_config(tiny.config("gemma3n", layers=4).to_dict())
    front = 2 * 32 * 32 + (16 + 12) * 32 + 4 * 32 * 8
    assert sum(layer.ffn.front_macs for layer in spec.decoder.layers) == front
    assert [layer.ffn.back_macs for layer in spec.decoder.layers] == [0, 0, 0, 2 * 32 * 32]
    workload = Workload(visual_tokens=16, text_tokens=8, system_tokens=2)
    none_left = Schedule(stages=(Stage(first=0, last=4),), entry=Select(rank_by="none", keep=Count(count=0)))
    half = Schedule(stages=(Stage(first=0, last=4),), entry=Select(rank_by="random", keep=Fraction(fraction=0.5)))
    ffn = [cost(spec, workload, one).prefill["ffn"] for one in (none_left, half)]
    row = sum(layer.ffn.dense_macs for layer in spec.decoder.layers)
    assert ffn == [2 * (10 * row + 16 * front), 2 * (18 * row + 8 * front)]
