"""The LLaVA round the language model, and the folder that is rebuilt from the shipped difference.

Decisions: a CLIP tower of 6 layers, patches of 12 pixels, 20 by 20 visual tokens; the difference holds tower,
projector and low-rank factors, in bfloat16, and nothing of the language model; the factors are multiplied out in
float64, so that the merged bfloat16 weights, and their checksum, do not depend on the machine.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ..build import save_model, save_processor
from .base import END_TOKEN, IMAGE_TOKEN, Base, Shape
from .compose import PATCH_SIZE, VISUAL_TOKENS
from .layout import IMAGE_SIZE

PROMPT = "<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\nAnswer:"
TEXT_PROMPT = PROMPT.replace("<image>\n", "")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' -%}{{ 'Answer: ' }}{%- endif -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\nAnswer:' }}{%- endif -%}"
)
TOWER_WIDTH, TOWER_LAYERS, TOWER_HEADS = 192, 6, 6
MAX_NEW_TOKENS = 64
RANK, LORA_SCALE = 16, 1.0
#: The projections with low-rank factors.
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")
Delta = dict[str, Tensor]


def build_processor(base: Base) -> LlavaProcessor:
    """Image processor, the language model's tokenizer and the chat template as one LlavaProcessor."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.tokenizer,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """Configuration of the whole model."""
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=TOWER_WIDTH,
        intermediate_size=3 * TOWER_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=TOWER_HEADS,
        projection_dim=TOWER_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        # Release 4 of transformers reads the first, release 5 the second.
        rope_theta=shape.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
    )


def short(name: str) -> str:
    """A weight's name without the level that some releases of transformers put into the tower's."""
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def save_delta(delta: Delta, path: Path, **facts: str) -> None:
    """Write the difference in bfloat16."""
    rounded = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in delta.items()}
    save_file(rounded, path, facts)


def merged(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``weight + scale * up @ down``, computed in float64: ``[out, in]``, ``[out, r]``, ``[r, in]``."""
    return (weight.double() + LORA_SCALE * up.double() @ down.double()).to(weight.dtype)


def language_weights(base: Base, delta: Delta) -> dict[str, Tensor]:
    """The language model's weights with the low-rank factors multiplied out; float32, names as in ``base``."""
    weights = dict(base.weights)
    for projection in ADAPTED:
        ups, downs = delta[f"lora.{projection}.up"], delta[f"lora.{projection}.down"]
        for layer in range(base.shape.layers):
            name = f"layers.{layer}.self_attn.{projection}.weight"
            weights[name] = merged(weights[name], ups[layer], downs[layer])
    return weights


def assemble(base: Base, delta: Delta, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The whole model, bfloat16.

    Raises:
        KeyError: the difference lacks a weight of tower or projector.
    """
    model = LlavaForConditionalGeneration(build_config(base.shape, processor.tokenizer))
    given = {f"language_model.{name}": weight for name, weight in language_weights(base, delta).items()}
    given |= {name: weight for name, weight in delta.items() if not name.startswith("lora.")}
    inner = model.model
    inner.load_state_dict({name: given[short(name)] for name in inner.state_dict()})
    model.tie_weights()
    tokenizer, generation = processor.tokenizer, model.generation_config
    generation.eos_token_id, generation.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    generation.bos_token_id, generation.max_new_tokens = model.config.text_config.bos_token_id, MAX_NEW_TOKENS
    # Weights only: `model.to` would also round the frequencies of the rotary embedding, which are no weights.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model.eval()


def checksum(folder: Path) -> str:
    """SHA-256 over a saved model's weights: names, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save_folder(base: Base, delta: Delta, folder: Path) -> str:
    """Write the whole model where ``from_pretrained`` finds it; returns the checksum of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    processor = build_processor(base)
    model = assemble(base, delta, processor)
    save_model(model, folder)
    save_processor(processor, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["rope_theta"] = base.shape.rope_theta
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return checksum(folder)
