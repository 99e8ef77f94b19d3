"""Configurations of models with their own code, and those that lie on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError, UnsupportedModelError
from planner.report import hub
from planner.report.targets import read_target
from planner.spec import ModelSpec
from planner.spec.images import encode

LLAVA: dict[str, Any] = {
    "model_type": "llava_llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
}
INTERNVL: dict[str, Any] = {
    "model_type": "internvl_chat",
    "llm_config": {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_hidden_layers": 24},
    "vision_config": {"model_type": "intern_vit_6b", "hidden_size": 1024, "num_hidden_layers": 24},
    "force_image_size": 448,
    "max_dynamic_patch": 6,
}  # fmt: skip


NEMOTRON: dict[str, Any] = {
    "model_type": "Llama_Nemotron_Nano_VL",
    "llm_config": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "vision_config": {"model_type": "", "version": "c-radio_v2-vlm-h"},
    "force_image_size": 512,
    "patch_size": 16,
    "downsample_ratio": 0.5,
    "vit_hidden_size": 1280,
    "projector_hidden_size": 4096,
}


def test_an_original_llava_is_the_same_computation_as_its_port() -> None:
    assert ModelSpec.from_config(LLAVA).digest == ModelSpec.from_config("llava-1.5-7b").digest


def test_tiles_of_later_llavas() -> None:
    tiled = {**LLAVA, "image_aspect_ratio": "anyres", "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672]]}
    spec = ModelSpec.from_config(tiled)
    assert spec.family == "llava_next" and encode(spec, 672, 672).visual_tokens == 2928
    siglip = {"mm_vision_tower": "google/siglip-so400m-patch14-384", "image_aspect_ratio": "anyres_max_9"}
    onevision = ModelSpec.from_config(
        {**tiled, "model_type": "llava_qwen", **siglip, "image_grid_pinpoints": "(1x1),...,(6x6)"}
    )
    assert onevision.family == "llava_onevision" and onevision.decoder.family == "qwen2"
    assert onevision.images is not None and len(onevision.images.resolutions) == 36
    assert onevision.vision is not None and onevision.vision.blocks[0].repeat == 26


def test_original_internvl() -> None:
    spec = ModelSpec.from_config(INTERNVL)
    assert (spec.family, spec.decoder.family, spec.layers) == ("internvl", "qwen2", 24)
    assert len(encode(spec, 3000, 2000).tiles) == 6 + 1


def test_nemotron_sees_as_internvl_does() -> None:
    """Twelve tiles of 512 pixels at most and the whole image, 256 tokens each; ten tokens ahead of 1,024 patches."""
    spec = ModelSpec.from_config(NEMOTRON)
    image = encode(spec, 2048, 1536)
    assert (len(image.tiles), image.visual_tokens) == (12 + 1, 13 * 256)
    assert spec.vision is not None and (spec.vision.extra_tokens, spec.vision.blocks[0].repeat) == (10, 32)
    assert spec.projector is not None and spec.projector.macs == 5120 * 4096 + 4096 * 4096


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**LLAVA, "mm_vision_tower": "someone/tower"}, "vision tower 'someone/tower'"),
        ({**LLAVA, "mm_projector_type": "ldp"}, "projector 'ldp'"),
        ({**NEMOTRON, "vit_hidden_size": 1536}, "width of RADIO '1536'"),
        ({**INTERNVL, "llm_config": {"architectures": ["NewForCausalLM"]}}, "decoder class 'NewForCausalLM'"),
    ],
)
def test_unknown_parts_are_refused_by_name(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        ModelSpec.from_config(config)


def test_a_model_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its configuration and those processor files that it has; the name stays the id."""
    files = {
        "config.json": {"model_type": "qwen2_5_vl", "text_config": {}, "vision_config": {}},
        "preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 1003520},
    }
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(model: str, name: str) -> str:
        assert model == "org/Model-7B"
        if name not in files:
            raise LocalEntryNotFoundError(name)
        (tmp_path / name).write_text(json.dumps(files[name]))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    target = read_target("org/Model-7B")
    assert target.name == "org/Model-7B"
    assert encode(target.spec, 1920, 1080).visual_tokens == 47 * 26


def test_no_such_model_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(model: str, name: str) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(InputError, match="'org/none' could not be read from the hub"):
        hub.hub_folder("org/none")


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("org/Model-7B", True),
        ("llava-1.5-7b", False),
        ("a/b/c", False),
        ("dir/config.json", False),
        ("tests/unit", False),
        ("../x", False),
    ],
)
def test_what_an_id_looks_like(text: str, is_id: bool) -> None:
    assert hub.is_hub_id(text) is is_id
