"""A tiny stand-in for the language model's GGUF: random Llama of two layers, a tokenizer that knows the words."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from planner.profiles.reference.train.pretrained.base import RENAMED_TOKEN
from planner.profiles.reference.train.pretrained.tower import TARGETS
from tokenizers import pre_tokenizers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", RENAMED_TOKEN)
HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, INTERMEDIATE = 64, 2, 4, 2, 96
NORMAL, CONTROL = 1, 3


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges: bytes, and every word of the patches' targets as one token behind a space."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in dict.fromkeys(word for words, _ in TARGETS.values() for word in words):
        known = "Ġ"
        for letter in word:
            if known + letter not in tokens:
                tokens.append(known + letter)
                merges.append(f"{known} {letter}")
            known += letter
    return tokens, merges


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in GGUF's order: of each head, the first of the first half, the first of the second, and so on."""
    size = len(weight) // heads
    order = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


def write_tiny_gguf(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Write the file; returns the weights under transformers' names, as they should come out again."""
    rng = np.random.default_rng(seed)
    tokens, merges = vocabulary()
    head = HIDDEN // HEADS

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.1, shape).astype(np.float32)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(tokens))
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_context_length(2048)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    # 8 bits for the embeddings, as in the real file; the weights to expect are what that leaves of them.
    packed = gguf.quantize(draw(len(tokens), HIDDEN), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    expected = {
        "embed_tokens.weight": gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0),
        "norm.weight": 1 + draw(HIDDEN),
    }
    writer.add_tensor("output_norm.weight", expected["norm.weight"])
    for i in range(LAYERS):
        for short, name, weight, heads in (
            ("attn_q", "self_attn.q_proj", draw(HIDDEN, HIDDEN), HEADS),
            ("attn_k", "self_attn.k_proj", draw(KEY_VALUE_HEADS * head, HIDDEN), KEY_VALUE_HEADS),
            ("attn_v", "self_attn.v_proj", draw(KEY_VALUE_HEADS * head, HIDDEN), None),
            ("attn_output", "self_attn.o_proj", draw(HIDDEN, HIDDEN), None),
            ("ffn_gate", "mlp.gate_proj", draw(INTERMEDIATE, HIDDEN), None),
            ("ffn_up", "mlp.up_proj", draw(INTERMEDIATE, HIDDEN), None),
            ("ffn_down", "mlp.down_proj", draw(HIDDEN, INTERMEDIATE), None),
            ("attn_norm", "input_layernorm", 1 + draw(HIDDEN), None),
            ("ffn_norm", "post_attention_layernorm", 1 + draw(HIDDEN), None),
        ):
            expected[f"layers.{i}.{name}.weight"] = weight
            writer.add_tensor(f"blk.{i}.{short}.weight", interleaved(weight, heads) if heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected
