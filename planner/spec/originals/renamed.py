"""Models that transformers has too, whose files on the hub say the same under other names."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]


def beside(own: Values, values: Values) -> Values:
    """`values` with `own` in front, and nothing of `values` asked for that a reader does not ask for."""
    return ChainMap(dict(own), values)  # type: ignore[arg-type]  # nothing is written into it


def renamed(values: Values, **names: str) -> dict[str, Any]:
    """Those of a block's fields that are there, under new names: ``new="old"``."""
    return {new: values[old] for new, old in names.items() if values.get(old) is not None}


def kimi(values: Values) -> Values:
    """Kimi-VL and Kimi K2.5."""
    vision = values["vision_config"]
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    own = renamed(vision, **{name: f"vt_{name}" for name in sizes})
    token = renamed(values, image_token_id="media_placeholder_token_id")
    return beside({**token, "vision_config": beside(own, vision)}, values)


def videos_alone(values: Values) -> Values:
    """Families that take videos and no pictures: their placeholder is the video's."""
    return beside(renamed(values, image_token_id="video_token_index"), values)


def fuyu(values: Values) -> Values:
    """Fuyu: no vision tower, and its decoder's fields at the top level in its checkpoint on the hub."""
    named = values.get("text_config")
    text = beside({"model_type": "persimmon"}, values if named is None else named)
    patches = {**renamed(values, patch_size="patch_size", num_channels="num_channels"), "model_type": "fuyu_patches"}
    patches["hidden_size"] = text.get("hidden_size", 4096)
    return beside({"text_config": text, "vision_config": patches}, values)


def chameleon(values: Values) -> Values:
    """Chameleon: its decoder's fields at the top level, and a tokeniser in place of a vision tower."""
    vision = beside({"model_type": "chameleon_vqgan"}, values.get("vq_config") or {})
    token = renamed(values.get("vocabulary_map") or {}, image_token_id="<image>")
    return beside(
        {**token, "text_config": beside({"model_type": "chameleon_text"}, values), "vision_config": vision}, values
    )


def kosmos2(values: Values, model_type: str = "kosmos_2_text_model") -> Values:
    """KOSMOS-2: fields of its decoder under names of its own."""
    text = values.get("text_config") or {}
    own = renamed(text, hidden_size="embed_dim", num_hidden_layers="layers", num_attention_heads="attention_heads")
    return beside({"text_config": beside({**own, "model_type": model_type}, text)}, values)


def kosmos2_5(values: Values) -> Values:
    """KOSMOS-2.5: the same."""
    return kosmos2(values, "kosmos_2_5_text_model")


def two_towers(values: Values) -> Values:
    """DeepSeek-VL's larger one: what its second tower is, beside the first."""
    own = {
        "model_type": "deepseek_vl_hybrid_vision",
        **renamed(values, high_res_vision_config="high_res_vision_config"),
    }
    return beside({"vision_config": beside(own, values.get("vision_config") or {})}, values)


def molmo2(values: Values) -> Values:
    """Molmo 2: its files declare layers of the vision tower that its weights do not have."""
    adapter = values["adapter_config"]
    own = renamed(values, image_token_id="image_patch_id")
    features = adapter.get("vit_layers") or adapter.get("vision_feature_layer")
    if values.get("vit_config") is not None:
        vision = values["vit_config"]
        deepest = max(layer % vision["num_hidden_layers"] for layer in features)
        own["vision_config"] = beside({"model_type": "molmo2_vision", "num_hidden_layers": deepest + 1}, vision)
    return beside({**own, "adapter_config": beside({"vision_feature_layer": features}, adapter)}, values)


def ovis2_5(values: Values) -> Values:
    """Ovis 2.5: its visual vocabulary beside its tower."""
    vision = beside({"vocab_size": values["visual_vocab_size"]}, values["vit_config"])
    return beside({"text_config": values["llm_config"], "vision_config": vision}, values)


def step3p7(values: Values) -> Values:
    """Step 3.7: lists that go on behind the last layer, and sliding layers with heads of their own."""
    text, vision = values["text_config"], values["vision_config"]
    own = renamed(
        text,
        num_key_value_heads="num_attention_groups",
        num_experts_per_tok="moe_top_k",
        n_routed_experts="moe_num_experts",
        share_expert_dim="share_expert_dims",
    )
    count = text.get("num_hidden_layers")
    for name in ("layer_types", "mlp_layer_types"):
        if text.get(name) is not None:
            own[name] = list(text[name])[:count]
    if text.get("moe_layers_enum") is not None:
        listed = text["moe_layers_enum"]
        sparse = {int(one) for one in (listed.split(",") if isinstance(listed, str) else listed)}
        own["mlp_layer_types"] = ["sparse" if index in sparse else "dense" for index in range(count)]
    if text.get("attention_other_setting") is not None:
        own["num_sliding_attention_heads"] = text["attention_other_setting"]["num_attention_heads"]
    seen = renamed(vision, hidden_size="width", num_hidden_layers="layers", num_attention_heads="heads")
    return beside(
        {
            "text_config": beside({**own, "model_type": "step3p5"}, text),
            "vision_config": beside({**seen, "model_type": "step3p5_vision"}, vision),
        },
        values,
    )


def minimax_m3(values: Values) -> Values:
    """MiniMax M3: which layers hold experts, and which choose their keys, as lists of zeros and ones."""
    text = values["text_config"]
    own: dict[str, Any] = {}
    if text.get("moe_layer_freq") is not None:
        own["mlp_layer_types"] = ["sparse" if one else "dense" for one in text["moe_layer_freq"]]
    sparse = text.get("sparse_attention_config")
    if sparse is not None:
        own |= renamed(sparse, index_n_heads="sparse_num_index_heads", index_head_dim="sparse_index_dim")
    if sparse is not None and text.get("layer_types") is None:
        own["layer_types"] = [
            "minimax_m3_sparse" if one else "full_attention" for one in sparse["sparse_attention_freq"]
        ]
    return beside({"text_config": beside({**own, "model_type": "minimax_m3_vl_text"}, text)}, values)


def ernie(values: Values) -> Values:
    """ERNIE 4.5 VL: one flat block, with pairs of sizes for text and for what is seen."""
    own = renamed(values, image_token_id="im_patch_id")
    text: dict[str, Any] = {"model_type": "ernie4_5_vl_moe_text"}
    for name in ("moe_num_experts", "moe_layer_start_index"):
        if values.get(name) is not None:
            listed = values[name]
            text[name] = listed if isinstance(listed, int) else listed[0]
    if "moe_layer_start_index" in text:
        text["first_k_dense_replace"] = text["moe_layer_start_index"]
    vision = values["vision_config"]
    seen = {**renamed(vision, hidden_size="embed_dim"), "model_type": "ernie4_5_vl_moe_vision"}
    return beside(
        {
            **own,
            "model_type": "ernie4_5_vl_moe",
            "text_config": beside(text, values),
            "vision_config": beside(seen, vision),
        },
        values,
    )
