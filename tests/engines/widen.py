"""A bundled model with wider attention heads, which computes the same: vLLM's kernels on CPUs want 32 channels or more.

Channels of zeros are added to queries, keys and values. Queries are scaled, because scores are divided by the square
root of the width. Rotary embeddings turn channel i of a head of width 2h with channel i + h, by a frequency that
depends on i / h: twice as wide, the pair i becomes the pair 2i.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def widened(source: Path, folder: Path) -> Path:
    """Write a bundled LLaVA with heads twice as wide, in float32, and its processor.

    Args:
        source: folder of the model.
        folder: where it goes; what is there already is taken as it is.
    """
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.j*"):
        shutil.copy(file, folder)
    config = json.loads((source / "config.json").read_text())
    width = config["text_config"]["head_dim"]
    weights = load_file(source / "model.safetensors")
    save_file(
        {name: _wide(name, tensor.float(), width) for name, tensor in weights.items()}, folder / "model.safetensors"
    )
    config["text_config"]["head_dim"] = 2 * width
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2))
    return folder


def _wide(name: str, tensor: Tensor, width: int) -> Tensor:
    if "language_model" not in name:
        return tensor
    heads = tensor.shape[0] // width
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        pairs = tensor.reshape(heads, 2, width // 2, -1)
        spread = torch.stack([pairs, torch.zeros_like(pairs)], dim=3).reshape(heads * 2 * width, -1)
        return spread * 2**0.5 if "q_proj" in name else spread
    if name.endswith("v_proj.weight"):
        values = tensor.reshape(heads, width, -1)
        return torch.cat([values, torch.zeros_like(values)], dim=1).reshape(heads * 2 * width, -1)
    if name.endswith("o_proj.weight"):
        values = tensor.reshape(len(tensor), -1, width)
        return torch.cat([values, torch.zeros_like(values)], dim=2).reshape(len(tensor), -1)
    return tensor
