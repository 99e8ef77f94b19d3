"""Families beyond the core matrix: a counted forward of a tiny model, and the matrices of the class's own defaults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers

from planner.cost import cost
from planner.runtime.count import FlopCounter
from planner.schedule import dense
from planner.spec import ModelSpec, towers
from planner.spec.config import Config, families, family, reader
from tests import tiny
from tests.integration.test_cost_counted import BATCH, cache_bytes, next_token, workload_of
from tests.tiny.extra import EXTRA

#: Matrices that a text-and-image forward never multiplies by: other routes, other inputs, drawing.
UNUSED = ("audio", ".fine.", "vqmodel", "generation_", "video_tower", "bk_layer")
#: Families whose tower's or projector's facts hold products of no matrix, as with a fixed number of queries: their
#: decoders alone are compared, and the names of what is left out.
ATTENDING = (
    "blip-2", "chameleon", "got_ocr2", "granite4_vision", "idefics2", "instructblip", "instructblipvideo", "kosmos-2",
    "kosmos-2.5", "deepseek_vl_hybrid", "molmo2", "pp_chart2table",
)  # fmt: skip
SEEING = (
    "vision", "connector", "projector", "qformer", "language_projection", "image_to_text_projection", "query_tokens",
    "aligner",
)  # fmt: skip
#: Classes that cannot be made from their own defaults, or whose configuration leaves out what no default stands for.
#: Their matrices are compared at the size of a tiny model.
NO_DEFAULTS = {
    "aria": "it has queries for pictures of 980 pixels in patches of 14, and its default tower has others",
    "cohere_compass": "its default has no rotary parameters of its layers",
    "gemma4_unified": "its default has no tower",
    "aya_vision": "its default tower's width is no multiple of its heads",
    "gemma4": "its default has no tower",
    "minicpmv4_6": "its default names no image token",
    "minicpmv4_7": "its default names no image token",
}
#: Classes whose matrices are compared at no size.
UNCOMPARED = {
    "gemma3n": "its tower needs timm; `test_gemma3n` compares its decoder",
    "minicpm_ocr": "it stores a merger of its tower that does not run",
    "mobilevlm": "not in transformers",
}
#: What the defaults of a class leave out, and every checkpoint says.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 8711}},
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 6, "mlp_layer_types": ["dense"] + ["sparse"] * 31}},
    "granite4_vision": {
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 16},
        "downsample_rate": "4/8",
        "deepstack_layer_map": [[-19, 9], [-13, 6]],
    },
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
}
#: Decoders that generate alone, from what the model has made of pictures and text; and models that make no cache.
ALONE = {
    "blip-2": "language_model", "instructblip": "language_model", "instructblipvideo": "language_model",
    "kosmos-2": "text_model", "kosmos-2.5": "text_model",
}  # fmt: skip
CACHELESS = ("granite4_vision",)
#: They make masks of the default number format.
OF_DEFAULT_FORMAT = ("kosmos-2", "kosmos-2.5")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Another default number format while the block runs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", [name for name in EXTRA if tiny.transformers_has(name)])
def test_dense_cost_equals_what_runs(name: str) -> None:
    model = tiny.model(name).requires_grad_(False)  # queries that are parameters would start a graph
    inputs = tiny.inputs(name, batch=BATCH)
    spec = ModelSpec.from_config(model.config.to_dict(), {"image_processor": EXTRA[name].processor or {}})
    expected = cost(spec, workload_of(name, spec, inputs), dense(spec.layers), head="all")
    wide = torch.float64 if name in OF_DEFAULT_FORMAT else torch.get_default_dtype()
    if name in CACHELESS:
        inputs["past_key_values"] = transformers.DynamicCache()
    with default_dtype(wide), torch.no_grad(), FlopCounter() as prefill:
        output = model(**inputs, use_cache=True)
    if name in ALONE:
        model, output = getattr(model, ALONE[name]), getattr(output, "language_model_outputs", output)
    assert not spec.decoder.modelled
    assert prefill.total == expected.prefill_flops
    assert cache_bytes(output.past_key_values) == expected.kv_cache_bytes
    with default_dtype(wide), torch.no_grad(), FlopCounter() as decode:
        model(**next_token(name, inputs, output))
    assert decode.total == BATCH * expected.decode_flops_per_token


def matrices(model: torch.nn.Module, but: tuple[str, ...]) -> int:
    """Elements of all weights that something is multiplied by, not of embeddings, positions and lone queries.

    Args:
        but: parts of names that are left out.
    """
    found = 0
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        linear = isinstance(owner, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d))
        looked_up = isinstance(owner, torch.nn.Embedding) and "visual_embeddings_table" not in name
        lone = any(word in name for word in ("position", "pos_emb", "class_embedding", "latents", "probe", "query"))
        if parameter.dim() >= 2 and not looked_up and (linear or not lone) and not any(part in name for part in but):
            found += parameter.numel()
    return found


def expected_matrices(name: str, spec: ModelSpec) -> int:
    decoder, tower, projector = spec.decoder, spec.vision, spec.projector
    assert tower is not None and projector is not None
    layers = sum(
        layer.attention.projection_macs
        + layer.attention.state_macs
        + layer.ffn.dense_macs
        + layer.ffn.experts * (layer.ffn.expert_macs + layer.ffn.visual_expert_macs)
        for layer in decoder.layers
    )
    if name in ATTENDING:
        return layers + decoder.head_macs
    blocks = sum(block.repeat * block.macs for block in tower.blocks)
    pooling = tower.token_macs + tower.tile_macs
    return layers + decoder.head_macs + tower.patch_macs + blocks + pooling + projector.macs + projector.patch_macs


@pytest.mark.parametrize("name", sorted(set(families("vlm")) - set(UNCOMPARED)))
def test_matrices_of_the_class(name: str) -> None:
    """With its own defaults, if it has any: within a thousandth of what the facts say."""
    if name not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this release of transformers has no {name}")
    if name in NO_DEFAULTS:
        model = tiny.model(name)
        config = model.config
    else:
        config = transformers.CONFIG_MAPPING[name](**LEFT_OUT.get(name, {}))
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(config)
    spec = ModelSpec.from_config(config.to_dict())
    tied = not any("lm_head" in path for path, _ in model.named_parameters())
    found = matrices(model, (*UNUSED, *SEEING) if name in ATTENDING else UNUSED) + (
        spec.decoder.head_macs if tied else 0
    )
    assert found == pytest.approx(expected_matrices(name, spec), rel=1e-3)


#: Decoders without a default for everything, or whose classes are elsewhere.
PARTIAL = ("internlm2", "internlm3", "deepseek_v2")


@pytest.mark.parametrize("role", ["decoder", "tower"])
def test_digests_do_not_depend_on_what_a_configuration_leaves_out(role: str) -> None:
    """A block with its model type alone, and one with every default of its class written out."""
    different = []
    for name in sorted(set(families(role)) & set(transformers.CONFIG_MAPPING) - set(PARTIAL)):
        written = {**transformers.CONFIG_MAPPING[name]().to_dict(), "model_type": name}
        silent = {"model_type": name}
        if role == "tower":
            data = family(name, "tower")
            facts = [
                reader(data, "reader", towers.__name__)(Config(block, "", data), name) for block in (silent, written)
            ]
        else:
            facts = [ModelSpec.from_config(block).digest for block in (silent, written)]
        different += [name] if facts[0] != facts[1] else []
    assert not different
