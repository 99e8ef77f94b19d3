"""Model facts: what a configuration says, however it is spelled, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import ExtensionError, InputError, UnsupportedModelError
from planner.spec import ModelSpec, originals, projectors, shipped, towers
from planner.spec.config import Config, families, family, reader
from planner.spec.images import assumed, encode

LLAVA: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
}


def changed(path: str, value: Any = None, drop: bool = False) -> dict[str, Any]:
    config = copy.deepcopy(LLAVA)
    *blocks, name = path.split(".")
    place = config
    for block in blocks:
        place = place[block]
    if drop:
        del place[name]
    else:
        place[name] = value
    return config


def text(model_type: str, **fields: Any) -> Any:
    """Decoder facts of a text-only configuration."""
    return ModelSpec.from_config({"model_type": model_type, **fields}).decoder


def test_facts_by_hand() -> None:
    spec = ModelSpec.from_config(LLAVA)
    assert (spec.family, spec.layers, spec.hidden_size, spec.image_token_id) == ("llava", 4, 64, 32000)
    attention, ffn = spec.decoder.layers[0].attention, spec.decoder.layers[0].ffn
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 16)
    assert attention.query_macs == 64 * 64
    assert attention.key_macs == attention.value_macs == 64 * 32
    assert attention.cached_elements == 2 * 2 * 16
    assert ffn.macs == 3 * 64 * 96
    assert spec.vision is not None and spec.projector is not None
    assert spec.vision.patch_macs == 32 * 3 * 14 * 14
    assert spec.vision.extra_tokens == 1
    assert spec.projector.macs == 32 * 64 + 64 * 64


@pytest.mark.parametrize(
    "same",
    [
        changed("torch_dtype", "bfloat16"),
        changed("dtype", "float16"),
        changed("transformers_version", "4.57.0"),
        changed("text_config.torch_dtype", "float16"),
        changed("text_config.rms_norm_eps", 1e-6),
        changed("text_config.head_dim", 16),
        changed("text_config.use_cache", False),
        changed("vision_config.num_channels", 3),
        changed("image_token_id", 32000),
        changed("vision_feature_layer", -2),
        changed("architectures", ["LlavaForConditionalGeneration"]),
    ],
)
def test_spelling_does_not_matter(same: dict[str, Any]) -> None:
    assert ModelSpec.from_config(same).digest == ModelSpec.from_config(LLAVA).digest


def test_image_token_id_or_index() -> None:
    spelled = changed("image_token_index", drop=True)
    spelled["image_token_id"] = 32000
    assert ModelSpec.from_config(spelled).digest == ModelSpec.from_config(LLAVA).digest


@pytest.mark.parametrize(
    "other",
    [
        changed("text_config.num_hidden_layers", 5),
        changed("text_config.num_key_value_heads", 4),
        changed("text_config.intermediate_size", 100),
        changed("vision_config.num_hidden_layers", 4),
        changed("image_token_index", 31999),
    ],
)
def test_another_computation_has_another_digest(other: dict[str, Any]) -> None:
    assert ModelSpec.from_config(other).digest != ModelSpec.from_config(LLAVA).digest


def test_file_folder_dict_and_shipped_name_agree(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    digests = {ModelSpec.from_config(where).digest for where in (LLAVA, tmp_path, str(tmp_path / "config.json"))}
    assert len(digests) == 1
    assert len(shipped()) >= 5
    assert all(ModelSpec.from_config(name).layers for name in shipped())


def test_every_known_decoder_reads_with_its_own_defaults() -> None:
    needs_more = {"internlm2", "deepseek_v2"}
    for model_type in set(families("decoder")) - needs_more:
        decoder = text(model_type)
        assert decoder.layers and decoder.layers[0].ffn.macs > 0, model_type


def test_every_family_names_parts_that_exist() -> None:
    for model_type in families("vlm"):
        data = family(model_type, "vlm")
        assert data["text"] in families("decoder"), model_type
        assert data["vision"] in families("tower"), model_type


def test_every_reader_that_a_family_names_is_there() -> None:
    homes = (
        ("vlm", "projector", projectors),
        ("vlm", "rewrite", originals),
        ("original", "rewrite", originals),
        ("tower", "reader", towers),
    )
    for role, key, home in homes:
        for data in (family(model_type, role) for model_type in families(role)):
            if key not in data:
                continue
            found = reader(data, key, home.__name__)
            assert found.__module__.startswith(home.__name__) and not found.__name__.startswith("_")


@pytest.mark.parametrize("spelled", ["lava", "planner.nowhere:llava", "planner.spec.projectors:lava"])
def test_a_reader_that_is_not_there_is_refused(spelled: str) -> None:
    data = {**family("llava", "vlm"), "projector": spelled}
    with pytest.raises(ExtensionError, match=f"names the projector '{spelled}'"):
        reader(data, "projector", projectors.__name__)


def test_a_reader_of_another_module() -> None:
    data = {**family("llava", "vlm"), "projector": "planner.spec.projectors:mllama"}
    assert reader(data, "projector", "planner.spec.towers") is projectors.mllama


def test_a_part_in_place_of_the_whole_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="'clip_vision_model' is a vision tower, not a model family"):
        ModelSpec.from_config({"model_type": "clip_vision_model"})


def test_tiles_without_resolutions_are_refused() -> None:
    vision, tower = Config(LLAVA["vision_config"], "vision_config"), ModelSpec.from_config(LLAVA).vision
    assert tower is not None
    with pytest.raises(InputError, match="no 'image_grid_pinpoints'"):
        projectors.anyres(Config({}, "toy"), vision, tower, 64)


def test_head_size_apart_from_hidden_over_heads() -> None:
    attention = (
        text("gemma", hidden_size=96, num_attention_heads=8, num_key_value_heads=1, head_dim=32).layers[0].attention
    )
    assert attention.query_macs == 96 * 8 * 32
    assert attention.output_macs == 8 * 32 * 96
    assert attention.cached_elements == 2 * 32


def test_plain_feed_forward_has_two_matrices() -> None:
    assert text("starcoder2", hidden_size=48, intermediate_size=64).layers[0].ffn.macs == 2 * 48 * 64


def test_windows_follow_layer_types() -> None:
    layers = text("gemma3_text", num_hidden_layers=7, sliding_window=512).layers
    assert [layer.attention.kind for layer in layers] == ["sliding"] * 5 + ["full"] + ["sliding"]
    assert [layer.attention.window for layer in layers] == [512] * 5 + [0] + [512]
    listed = ["full_attention", "sliding_attention"]
    assert [layer.attention.kind for layer in text("qwen2", num_hidden_layers=2, layer_types=listed).layers] == [
        "full",
        "sliding",
    ]
    assert text("mistral", sliding_window=None).layers[0].attention.kind == "full"


def test_chunks_of_llama4() -> None:
    layers = text("llama4_text", num_hidden_layers=4, attention_chunk_size=128).layers
    assert [layer.attention.window for layer in layers] == [128, 128, 128, 0]


def test_experts_by_hand() -> None:
    """Shared experts, dense layers first, a router."""
    layers = text(
        "deepseek_v3", hidden_size=32, intermediate_size=80, num_hidden_layers=3, first_k_dense_replace=1,
        n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=20,
    ).layers  # fmt: skip
    assert layers[0].ffn.macs == 3 * 32 * 80
    assert layers[1].ffn.macs == 32 * 8 + (2 + 1) * 3 * 32 * 20
    assert layers[1].ffn.experts == 8


def test_qwen_moe_steps_and_exceptions() -> None:
    layers = text(
        "qwen3_moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3], num_local_experts=4
    ).layers
    assert [layer.ffn.experts for layer in layers] == [0, 4, 0, 0, 0, 4]


def test_llama4_runs_every_expert() -> None:
    ffn = text("llama4_text", num_local_experts=16, num_experts_per_tok=1).layers[0].ffn
    assert ffn.experts_run == 16


def test_latent_attention_by_hand() -> None:
    attention = text(
        "deepseek_v3", hidden_size=64, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=10,
    ).layers[0].attention  # fmt: skip
    assert attention.query_macs == 64 * 24 + 24 * 4 * 20
    assert attention.key_macs + attention.value_macs == 64 * (16 + 8)
    assert attention.expand_macs == 16 * 4 * (12 + 10)
    assert attention.output_macs == 4 * 10 * 64
    assert attention.cached_elements == 16 + 8
    assert attention.expanded_elements == 4 * (20 + 10)
    assert not attention.separable


def test_shared_keys_and_values_cost_and_hold_nothing() -> None:
    layers = text("llama", num_hidden_layers=4, num_kv_shared_layers=1).layers
    assert layers[2].attention.cached_elements > 0
    assert layers[3].attention.shares_kv
    assert layers[3].attention.cached_elements == layers[3].attention.key_macs == layers[3].attention.value_macs == 0


def test_cross_attention_layers_of_mllama() -> None:
    decoder = text("mllama_text_model", num_hidden_layers=5, cross_attention_layers=[1, 4])
    assert [layer.attention.kind for layer in decoder.layers] == ["full", "cross", "full", "full", "cross"]
    assert decoder.cross


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({}, InputError, "no field 'model_type'"),
        ({"model_type": "llavaa"}, UnsupportedModelError, "'llavaa' is not known.*Did you mean 'llava'"),
        ({"model_type": "llava"}, InputError, "no block 'text_config'"),
        (changed("text_config.model_type", "mamba"), UnsupportedModelError, "text decoder 'mamba'"),
        (changed("vision_config.model_type", "sam"), UnsupportedModelError, "vision tower 'sam'"),
        (changed("text_config.layer_types", ["full_attention"] * 3 + ["wavelet"]), UnsupportedModelError, "'wavelet'"),
        (changed("text_config.layer_types", ["full_attention"]), InputError, "lists 1 layers"),
        (changed("text_config.hidden_size", -4), InputError, "hidden_size = -4 makes no sense"),
        (changed("text_config.hidden_size", 1 << 40), InputError, "makes no sense"),
        (changed("text_config.hidden_size", "wide"), InputError, "must be a whole number"),
        (changed("text_config.num_key_value_heads", 3), InputError, "cannot share 3"),
        (changed("vision_config.image_size", [56, 28]), InputError, "not square"),
        (changed("vision_feature_select_strategy", "some"), UnsupportedModelError, "'some'"),
        ({"model_type": "internlm2", "hidden_size": 8}, InputError, "no field"),
    ],
)
def test_refusals(config: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ModelSpec.from_config(config)


def test_a_missing_field_is_named() -> None:
    fields = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}
    with pytest.raises(InputError, match="'intermediate_size'"):
        ModelSpec.from_config({"model_type": "internlm2", **fields})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Did you mean 'llava-1\.5-7b'"):
        ModelSpec.from_config("llava-1.5-7")
    broken = tmp_path / "config.json"
    broken.write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        ModelSpec.from_config(broken)
    broken.write_text("[]")
    with pytest.raises(InputError, match="holds list"):
        ModelSpec.from_config(broken)


@pytest.mark.parametrize("size", [(0, 480), (640, 0), (-3, 5), (1 << 21, 5)])
def test_images_of_no_size(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="makes no sense"):
        encode(ModelSpec.from_config("qwen2-vl-7b"), *size)


def test_images_too_narrow() -> None:
    with pytest.raises(InputError, match="narrower than 1:200"):
        encode(ModelSpec.from_config("qwen2-vl-7b"), 4100, 20)


def test_a_text_model_takes_no_image() -> None:
    with pytest.raises(UnsupportedModelError, match="takes no image"):
        encode(ModelSpec.from_config({"model_type": "llama"}), 64, 64)


@pytest.mark.parametrize(
    ("width", "height", "tiles"),
    # Llama 4 enlarges least: 336 px fit one tile; 640 x 480 need 2 x 2; a strip gets a strip. Several tiles add a
    # thumbnail.
    [(336, 336, 1), (300, 200, 1), (640, 480, 5), (1300, 300, 5), (6000, 6000, 17)],
)
def test_llama4_canvas(width: int, height: int, tiles: int) -> None:
    config = {
        "model_type": "llama4",
        "text_config": {"model_type": "llama4_text"},
        "vision_config": {"model_type": "llama4_vision_model", "image_size": 336, "patch_size": 14},
    }
    found = encode(ModelSpec.from_config(config), width, height)
    assert len(found.tiles) == tiles
    assert found.visual_tokens == 144 * tiles


def test_tiles_assumed_without_an_image() -> None:
    assert assumed(ModelSpec.from_config("llava-1.5-7b"), 1152).tiles == ((24, 24),) * 2
    assert assumed(ModelSpec.from_config("qwen2-vl-7b"), 391).tiles == ((34, 46),)
    assert assumed(ModelSpec.from_config("qwen2-vl-7b"), 0).tiles == ()
