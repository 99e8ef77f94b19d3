"""The `exact` convention is what runs: integer equality with a counter on real forwards of every family, and with
the cache's bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from planner.cost import cost
from planner.runtime import ImageCache, attach
from planner.runtime.count import FlopCounter
from planner.schedule import Schedule, Select, Stage, dense
from planner.spec import ModelSpec
from planner.workload import Workload
from tests import tiny
from tests.schedules import LAYERS, NOTHING, SCHEDULES, select
from tests.tiny.configs import IMAGE, IMAGE_END, IMAGE_START, VISION_END, VISION_START
from tests.tiny.extra import EXTRA

BATCH = 2
#: What layers of a cache hold: of some beside their window all of the prompt, keys that choose keys, states.
CACHED = (
    "keys", "values", "prefill_keys", "prefill_values", "idx_keys", "indexer_keys", "conv_states", "recurrent_states",
)  # fmt: skip
#: Tokens that stand around a picture.
MARKS = torch.tensor([VISION_START, VISION_END, IMAGE_START, IMAGE_END])


def workload_of(family: str, spec: ModelSpec, inputs: dict[str, torch.Tensor]) -> Workload:
    """What the tiny inputs ask, in the cost model's terms."""
    is_image = inputs["input_ids"][0] == IMAGE
    visual = int(is_image.sum())
    system = int(is_image.int().argmax()) if visual else 0
    text = len(is_image) - visual - system
    between = int((~is_image[: int(is_image.nonzero().max()) + 1]).sum()) - system if visual else 0
    if family == "mllama":
        # Visual tokens are not in the sequence, their one placeholder is: two tiles of 16 patches and a class token.
        visual, text = 2 * 17, text + 1
    images: tuple[tuple[int, int], ...] = ()
    if "image_sizes" in inputs:
        sizes = inputs["image_sizes"][: len(inputs["image_sizes"]) // BATCH].tolist()
        images = tuple((width, height) for height, width in sizes)
    elif family in EXTRA and EXTRA[family].size:
        images = (EXTRA[family].size,)
    # The Qwen kind's tiny pictures are below its processors' least size: the shape follows from the number of tokens.
    return Workload(
        visual_tokens=visual,
        text_tokens=text,
        system_tokens=system,
        between_tokens=between,
        mark_tokens=int(torch.isin(inputs["input_ids"][0], MARKS).sum()),
        batch=BATCH,
        images=images,
        kv_bits=64,
    )


def next_token(family: str, inputs: dict[str, torch.Tensor], output: Any) -> dict[str, Any]:
    """Keyword arguments of the first decode step."""
    length = inputs["input_ids"].shape[1]
    step: dict[str, Any] = {
        "input_ids": torch.full((BATCH, 1), 7),
        "attention_mask": torch.ones(BATCH, length + 1, dtype=torch.long),
        "past_key_values": output.past_key_values,
        "use_cache": True,
    }
    axes = "image_grid_thw" in inputs or "target_sizes" in inputs
    if axes and (family not in EXTRA or EXTRA[family].typed):
        step["position_ids"] = torch.full((3, BATCH, 1), length)
    if "cross_attention_mask" in inputs:
        step["cross_attention_mask"] = inputs["cross_attention_mask"][:, -1:]
    return step


def cache_bytes(cache: Any) -> int:
    """Keys, values, convolution and recurrent states."""
    found = 0
    for layer in cache.layers:
        for name in CACHED:
            held = getattr(layer, name, None)
            tensors = held.values() if isinstance(held, dict) else (held,)
            found += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dense_cost_equals_what_runs(family: str, attention: str) -> None:
    model = tiny.model(family, attn=attention)
    inputs = tiny.inputs(family, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    workload = workload_of(family, spec, inputs)
    expected = cost(spec, workload, dense(spec.layers), head="all")

    with torch.no_grad(), FlopCounter() as prefill:
        output = model(**inputs, use_cache=True)
    assert prefill.total == expected.prefill_flops
    assert cache_bytes(output.past_key_values) == expected.kv_cache_bytes

    with torch.no_grad(), FlopCounter() as decode:
        model(**next_token(family, inputs, output))
    assert decode.total == BATCH * expected.decode_flops_per_token
    assert cache_bytes(output.past_key_values) == expected.kv_cache_bytes_after(1)


@pytest.mark.parametrize("family", ["llava", "internvl", "gemma3", "llama4", "mistral3"])
def test_several_images(family: str) -> None:
    """Tiles and images add up, and windows shorter than the prompt still cost what a dense kernel executes."""
    model = tiny.model(family)
    inputs = tiny.inputs(family, batch=BATCH, images=3)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of(family, spec, inputs), dense(spec.layers), head="all")
    with torch.no_grad(), FlopCounter() as counter:
        model(**inputs)
    assert counter.total == expected.prefill_flops


def test_the_head_on_the_last_position_only() -> None:
    model = tiny.model("llava")
    inputs = tiny.inputs("llava", batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of("llava", spec, inputs), dense(spec.layers))
    with torch.no_grad(), FlopCounter() as counter:
        model(**inputs, logits_to_keep=1)
    assert counter.total == expected.prefill_flops


def test_components_are_where_the_modules_are() -> None:
    """Not only the total: tower, projector, feed-forward and head each equal their modules' counts."""
    model = tiny.model("llava")
    inputs = tiny.inputs("llava", batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of("llava", spec, inputs), dense(spec.layers), head="all").prefill
    with torch.no_grad(), FlopCounter() as counter:
        model(**inputs)
    modules = counter.by_module()

    def of(suffix: str) -> int:
        return sum(flops for name, flops in modules.items() if name.endswith(suffix))

    assert of("model.vision_tower") == expected["vision"]
    assert of("multi_modal_projector") == expected["projector"]
    assert of("lm_head") == expected["lm_head"]
    language = sum(flops for name, flops in modules.items() if "language_model" in name and name.endswith(".mlp"))
    assert language == expected["ffn"]


#: Text decoders that may stand behind a vision tower, beyond those of the families above: what differs from `_SMALL`.
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
DECODERS: dict[str, dict[str, Any]] = {
    "cohere": {},
    "deepseek_v2": {**_LATENT, "q_lora_rank": 12},
    "deepseek_v3": {**_LATENT, "q_lora_rank": None},
    "gemma2": {"head_dim": 16, "sliding_window": 10},
    "gemma3n_text": {"head_dim": 8, "sliding_window": 10, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 128},
    "glm4": {"head_dim": 8},
    "granite": {},
    "helium": {"head_dim": 8},
    "internlm3": {"head_dim": 8},
    "llama4_text": {"attention_chunk_size": 10},
    "ministral3": {"head_dim": 16},
    "mistral": {"sliding_window": 10},
    "mistral4": {**_LATENT, "q_lora_rank": 12},
    "nemotron": {},
    "olmo2": {},
    "phi": {},
    "phi3": {},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2},
    "qwen3_moe": {**_EXPERTS, "mlp_only_layers": [1]},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}
_SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("model_type", DECODERS)
def test_decoders(model_type: str) -> None:
    """Latent attention, plain feed-forward, shared experts, fused projections, windows and chunks."""
    config = transformers.CONFIG_MAPPING[model_type](**{**_SMALL, **DECODERS[model_type]})
    # Gemma 2 has no fused attention: its scores are capped.
    kernel = "eager" if model_type == "gemma2" else "sdpa"
    auto = transformers.AutoModelForCausalLM
    if model_type == "mistral4":
        auto = transformers.AutoModelForImageTextToText  # where transformers lists it
    model = auto.from_config(config, attn_implementation=kernel).eval()
    spec = ModelSpec.from_config(config.to_dict())
    workload = Workload(visual_tokens=0, text_tokens=20, system_tokens=0, batch=BATCH, kv_bits=32)
    expected = cost(spec, workload, dense(spec.layers), head="all")
    ids = torch.randint(5, 100, (BATCH, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounter() as prefill:
        cache = model(ids, use_cache=True).past_key_values
    assert prefill.total == expected.prefill_flops
    assert cache_bytes(cache) == expected.kv_cache_bytes
    with torch.no_grad(), FlopCounter() as decode:
        model(ids[:, :1], past_key_values=cache, use_cache=True)
    assert decode.total == BATCH * expected.decode_flops_per_token
    assert cache_bytes(cache) == expected.kv_cache_bytes_after(1)


def staged(*stages: tuple[Select, ...], **options: Any) -> Schedule:
    """Stages of two layers each, with selections at their ends."""
    return Schedule(
        stages=tuple(
            Stage.model_validate({"first": 2 * i, "last": 2 * i + 2, "selects": selects, **(options if i == 0 else {})})
            for i, selects in enumerate(stages)
        )
    )


_CONTEXT = {"of": "context"}
#: Selections in whose place the runtime computes less than their kind says.
CORNERS: dict[str, Schedule] = {
    "nothing left to rank": staged((NOTHING,), (select("last_attention", 4),), (select("influence_cos", 2),)),
    "nothing left to probe": staged((NOTHING,), (select("influence_cos", 4, probe=True),), ()),
    "nothing left within a stage": staged((NOTHING, select("text_raters", 2), select("last_attention", 1)), (), ()),
    "all text protected": staged((select("attention_received", 0.5, protect=50, **_CONTEXT),), (), ()),
    "no context left": staged(
        (select("attention_received", 0, protect=2, **_CONTEXT),),
        (select("attention_received", 0.5, protect=2, **_CONTEXT),),
        (),
    ),
    "the last row's weights once": staged(
        (select("last_attention", 0.8), select("influence_l2", 0.7), select("influence_cos", 0.6)), (), ()
    ),
    "raters twice": staged((select("text_raters", 9), select("text_raters", 4), select("last_attention", 2)), (), ()),
    "fewer rows ranked": staged(
        (select("random", 9), select("cross_self_attention", 6), select("influence_cos", 3)), (), ()
    ),
    "text and image": staged(
        (
            select("last_attention", 9),
            select("attention_received", 0.5, protect=2, **_CONTEXT),
            select("influence_l2", 4),
            select("attention_received", 1, protect=1, **_CONTEXT),
        ),
        (),
        (),
    ),
    "score, then probe what is left": staged(
        (select("influence_l2", 9), select("influence_cos", 4, probe=True), select("last_attention", 2)), (), ()
    ),
    "context beside an image that is not read": staged(
        (select("attention_received", 0.5, protect=2, **_CONTEXT),),
        (),
        (),
        visual_attention="self",
        text_to_visual="none",
        cache_visual="none",
    ),
    "alone, then nothing": staged(
        (select("last_attention", 5), NOTHING, select("influence_l2", 3)), (), (), visual_attention="self"
    ),
    "behind text, then nothing": staged(
        (select("last_attention", 5), NOTHING, select("influence_l2", 3)), (), (), visual_attention="prefix"
    ),
}


@pytest.mark.parametrize("family", ["gemma3n", "llava", "qwen3_vl"])
@pytest.mark.parametrize("name", CORNERS)
def test_selections_that_find_little_to_do(name: str, family: str) -> None:
    """A score of nothing, and scores that share what has been computed, cost what they run; not one operation more."""
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of(family, spec, inputs), CORNERS[name])
    with attach(model, CORNERS[name]), torch.no_grad(), FlopCounter() as counter:
        model(**inputs, logits_to_keep=1)
    assert counter.total == expected.prefill_flops


@pytest.mark.parametrize("family", ["llava", "internvl", "paligemma", "llava-qwen3"])
@pytest.mark.parametrize(
    "name",
    ["visipruner", "visipruner-hidden", "visipruner-self", "visipruner-merge", "visipruner-mixed", "probe",
     "prellm-visipruner", "fastv", "prefix", "prefix-read", "prefix-mixed", "prefix-late", "prefix-probe"],
)  # fmt: skip
def test_a_second_question_on_a_cached_image(family: str, name: str) -> None:
    """No vision encoder, and of the shallow layers what text reads of them; all of it where there is no stream."""
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict())
    workload = workload_of(family, spec, inputs)
    with attach(model, SCHEDULES[name], image_cache=ImageCache()), torch.no_grad():
        model(**inputs, logits_to_keep=1)
        with FlopCounter() as counter:
            model(**inputs, logits_to_keep=1)
    streams = SCHEDULES[name].entry is None and SCHEDULES[name].stages[0].isolated
    if family == "paligemma" and SCHEDULES[name].image_stream_reads_prefix():
        streams = False  # the text before the image has seen the question
    workload = workload.model_copy(update={"image_stream_cached": streams})
    assert counter.total == cost(spec, workload, SCHEDULES[name]).prefill_flops
