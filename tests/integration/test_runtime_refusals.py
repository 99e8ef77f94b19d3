"""What a plan cannot be applied to is refused with its cause and a remedy, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AttentionInterface, DynamicCache, StaticCache

from planner.errors import InputError, RuntimeStateError, ScheduleError, UnsupportedModelError
from planner.runtime import ImageCache, attach, fix, observe
from planner.schedule import Count, Schedule, Select, Stage, TowerMerge
from tests import tiny
from tests.schedules import HYBRID, LAYERS, SCHEDULES, after_layer, select

FASTV = SCHEDULES["fastv"]


def llava() -> tuple[Any, dict[str, torch.Tensor]]:
    return tiny.model("llava", layers=LAYERS), tiny.inputs("llava")


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("mllama", "cross-attention"),
        ("llama", "placeholder token"),
        ("mixtral", "placeholder token"),
    ],
)
def test_models_that_lack_a_part(family: str, part: str) -> None:
    with pytest.raises(UnsupportedModelError, match=part):
        attach(tiny.model(family, layers=LAYERS), FASTV)


def test_ranking_by_a_layer_that_attends_in_chunks() -> None:
    with pytest.raises(ScheduleError, match=r"layer 2 would rank.*in chunks.*layer with full attention: 1, 3, 5"):
        attach(tiny.model("llama4", layers=LAYERS), SCHEDULES["visual-attention"])


def test_prompts_so_long_that_queries_are_scaled_by_their_place() -> None:
    model, inputs = tiny.model("llama4", layers=LAYERS, fresh=True), tiny.inputs("llama4")
    model.config.get_text_config().floor_scale = inputs["input_ids"].shape[1]
    with attach(model, FASTV), pytest.raises(RuntimeStateError, match="shorter than 28 tokens"):
        model(**inputs)


def test_something_that_is_no_model() -> None:
    with pytest.raises(UnsupportedModelError, match="not a transformers model"):
        attach(torch.nn.Linear(2, 2), FASTV)


def test_a_plan_for_another_depth() -> None:
    with pytest.raises(ScheduleError, match="6 layers, the model has 4"):
        attach(tiny.model("llava", layers=4), FASTV)


def test_a_papers_fractional_bounds() -> None:
    fractional = Schedule(stages=(Stage(first=0, last=2.5), Stage(first=2.5, last=6)))
    part = Stage(first=0, last=2, selects=(Select(rank_by="random", keep=Count(count=1.5)),))
    for schedule in (fractional, Schedule(stages=(part, Stage(first=2, last=6)))):
        with pytest.raises(ScheduleError, match="fractional"):
            attach(tiny.model("llava", layers=LAYERS), schedule)


def test_training_mode() -> None:
    model = tiny.model("llava", layers=LAYERS, fresh=True).train()
    with pytest.raises(RuntimeStateError, match="training mode"):
        attach(model, FASTV)
    inputs = tiny.inputs("llava")
    with attach(model.eval(), FASTV), pytest.raises(RuntimeStateError, match="training mode"):
        model.train()(**inputs)


def test_a_second_plan() -> None:
    model, _ = llava()
    with attach(model, FASTV):
        with pytest.raises(RuntimeStateError, match="attached to this model already"):
            attach(model, FASTV)
        with pytest.raises(RuntimeStateError, match="a plan is attached"), observe(model, print):
            pass


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention", "my_own"])
def test_other_attention_kernels(kernel: str) -> None:
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    config = model.model.language_model.config
    before = dict(AttentionInterface._global_mapping)
    config._attn_implementation_internal = kernel
    with pytest.raises(RuntimeStateError, match=f"'{kernel}' is not supported") as refused:
        attach(model, FASTV)
    assert 'set_attn_implementation("sdpa")' in str(refused.value)
    assert before == AttentionInterface._global_mapping
    assert config._attn_implementation_internal == kernel


def test_a_static_cache() -> None:
    model, inputs = llava()
    with attach(model, FASTV), torch.no_grad():
        with pytest.raises(RuntimeStateError, match="StaticCache"):
            model(**inputs, past_key_values=StaticCache(config=model.config.text_config, max_cache_len=64))
        with pytest.raises(RuntimeStateError, match="StaticCache"):
            model.generate(**inputs, max_new_tokens=2, cache_implementation="static")


def test_an_image_in_a_later_turn() -> None:
    model, inputs = llava()
    with attach(model, FASTV), torch.no_grad():
        cache = DynamicCache()
        model(**inputs, past_key_values=cache)
        with pytest.raises(RuntimeStateError, match="later turn"):
            model(**{**inputs, "attention_mask": None}, past_key_values=cache)
        both = torch.cat([inputs["input_ids"], inputs["input_ids"]], dim=1)
        later = {"input_ids": both, "attention_mask": torch.ones_like(both), "pixel_values": inputs["pixel_values"]}
        with pytest.raises(RuntimeStateError, match="later turn"):
            model.generate(**later, past_key_values=cache, max_new_tokens=2)


def test_embeddings_in_place_of_token_ids() -> None:
    model, inputs = llava()
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with attach(model, FASTV), torch.no_grad(), pytest.raises(RuntimeStateError, match="needs input_ids"):
        model(inputs_embeds=embeddings)


def test_a_prompt_in_chunks() -> None:
    model, inputs = llava()
    longer = torch.nn.functional.pad(inputs["attention_mask"], (0, 4), value=1)
    with attach(model, FASTV), torch.no_grad(), pytest.raises(RuntimeStateError, match="prefill_chunk_size"):
        model(**{**inputs, "attention_mask": longer}, past_key_values=DynamicCache())


def test_a_mask_of_the_users_own() -> None:
    model, inputs = llava()
    own = torch.ones(1, 1, 26, 26, dtype=torch.bool).tril()
    with attach(model, FASTV), torch.no_grad(), pytest.raises(RuntimeStateError, match="two-dimensional"):
        model(**{**inputs, "attention_mask": own})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers(bad: float) -> None:
    model, inputs = llava()
    inputs["pixel_values"][0, 0, 3, 3] = bad
    with attach(model, FASTV), torch.no_grad(), pytest.raises(InputError, match="NaN or infinite"):
        model(**inputs)
    with attach(model, FASTV), torch.no_grad(), pytest.raises(InputError, match="NaN or infinite"):
        model.generate(**inputs, max_new_tokens=2)


def test_activations_that_are_no_numbers() -> None:
    model = tiny.model("llava", layers=LAYERS, fresh=True)
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
        with attach(model, FASTV), pytest.raises(RuntimeStateError, match="not finite"):
            model(**tiny.inputs("llava"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["visipruner", "probe", "threshold", "var-fastv"])
def test_half_precision_runs(dtype: torch.dtype, name: str) -> None:
    model = tiny.model("llava", layers=LAYERS, dtype=dtype, fresh=True)
    inputs = tiny.inputs("llava", batch=2, left_pad=3, dtype=dtype)
    with attach(model, SCHEDULES[name]), torch.no_grad():
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3


def test_models_dispatched_by_accelerate_work() -> None:
    from accelerate import cpu_offload

    inputs = tiny.inputs("llava")
    with attach(tiny.model("llava", layers=LAYERS), SCHEDULES["visipruner"]) as handle, torch.no_grad():
        expected = handle.parts.model(**inputs).logits
    offloaded = tiny.model("llava", layers=LAYERS, fresh=True)
    cpu_offload(offloaded, execution_device="cpu")
    with attach(offloaded, SCHEDULES["visipruner"]), torch.no_grad():
        assert torch.equal(offloaded(**inputs).logits, expected)


def test_wrapped_models_work() -> None:
    """PEFT's wrapper answers `get_base_model`; torch.compile's holds `_orig_mod`."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def get_base_model(self) -> Any:
            return self.inner

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    model, inputs = llava()
    with torch.no_grad():
        with attach(model, FASTV):
            expected = model(**inputs).logits
        wrapped = Wrapper(model).eval()
        with attach(wrapped, FASTV):
            assert torch.equal(wrapped(**inputs).logits, expected)


def test_image_streams_where_every_layer_reads_the_image() -> None:
    model = tiny.model("gemma4", layers=LAYERS)
    with pytest.raises(UnsupportedModelError, match="gemma4 has no image streams"):
        attach(model, SCHEDULES["visipruner"], image_cache=ImageCache(max_bytes=1))
    handle = attach(model, SCHEDULES["visipruner"])
    with handle, pytest.raises(UnsupportedModelError, match="no image streams"):
        handle.encode_image(**tiny.inputs("gemma4"))


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (SCHEDULES["visipruner"], r"layers 4 and above read keys and values of layers 2, 3.*before layer 2"),
        (SCHEDULES["prefix-late"], r"none of these visual tokens can run alone \(visual_attention 'prefix'\)"),
        (HYBRID["hybrid-cache-none"], "layer 5 decodes over visual tokens in the cache of layer 2, which keeps none"),
        (after_layer(3, select("influence_l2", 5, probe=True)), "layer 4 has no keys of its own that could be probed"),
    ],
)
def test_layers_that_read_the_keys_of_others(schedule: Schedule, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        attach(tiny.model("gemma4-sharing", layers=LAYERS), schedule)


def test_shared_keys_have_no_fixed_shapes() -> None:
    model, inputs = tiny.model("gemma4-sharing", layers=LAYERS), tiny.inputs("gemma4-sharing")
    with attach(model, FASTV) as handle, torch.no_grad():
        with pytest.raises(UnsupportedModelError, match="read keys and values of others"):
            handle.compile_prefill()
        with pytest.raises(RuntimeStateError, match="keys that several layers read"):
            fix(model(**inputs, use_cache=True).past_key_values, 4)


@pytest.mark.parametrize(
    ("schedule", "what"),
    [
        (Schedule(stages=(Stage(first=0, last=LAYERS),), tower=TowerMerge(merged=(1,))), "inside the vision encoder"),
        (after_layer(1, cache_generated=Count(count=4)), "drops generated tokens"),
        (after_layer(1, select("random", 3, merge="mean")), "merges tokens between decoder layers"),
        (
            Schedule(stages=(Stage(first=0, last=LAYERS),), entry=select("tile_attention", 4)),
            "gives each tile a budget",
        ),
    ],
)
def test_what_has_a_cost_alone(schedule: Schedule, what: str) -> None:
    with pytest.raises(ScheduleError, match=rf"{what}.*can be costed and not executed"):
        attach(llava()[0], schedule)
