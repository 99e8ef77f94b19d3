"""The language model as it is trained: frozen weights, low-rank factors merged on the way, packed sequences.

Decisions: the factors of all layers are stacked and multiplied out once a step, so a layer costs what a plain one
does; query, key and value are one product, and so are gate and up. Equal to transformers' LlamaModel with the merged
weights (tested).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..packing import Pack
from .base import Base
from .build import ADAPTED, LORA_SCALE, RANK, Delta

# Not cuDNN's, which would be planned anew for each length. With a mask, the first serves the CPU and the second CUDA.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Decoder(nn.Module):
    """A frozen Llama with trainable low-rank factors on its attention projections.

    Args:
        base: the language model.
        dtype: in which it computes; the factors stay float32.
        seed: of the factors' initial values.
    """

    embeddings: Tensor
    gate_up: Tensor
    down: Tensor
    norms: Tensor
    last_norm: Tensor

    def __init__(self, base: Base, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.dtype = base.shape, dtype
        weights, layers = base.weights, range(base.shape.layers)

        def stack(*names: str) -> Tensor:
            return torch.stack([torch.cat([weights[f"layers.{i}.{name}.weight"] for name in names]) for i in layers])

        generator = torch.Generator().manual_seed(seed)
        self.ups, self.downs = nn.ParameterDict(), nn.ParameterDict()
        for projection in ADAPTED:
            weight = stack(f"self_attn.{projection}")
            # Added to in float32, as the merging of the shipped weights does, and only then rounded.
            self.register_buffer(projection, weight, persistent=False)
            count, out, into = weight.shape
            self.ups[projection] = nn.Parameter(torch.zeros(count, out, RANK))
            start = torch.randn(count, RANK, into, generator=generator) / into**0.5
            self.downs[projection] = nn.Parameter(start)
        norms = torch.stack([stack("input_layernorm"), stack("post_attention_layernorm")])
        for name, tensor in (
            ("embeddings", weights["embed_tokens.weight"]),
            ("gate_up", stack("mlp.gate_proj", "mlp.up_proj")),
            ("down", stack("mlp.down_proj")),
            ("norms", norms),
            ("last_norm", weights["norm.weight"]),
        ):
            self.register_buffer(name, tensor.to(dtype), persistent=False)

    def delta(self) -> Delta:
        """The factors under their names in the shipped difference."""
        return {
            f"lora.{projection}.{part}": factors[projection].detach()
            for part, factors in (("up", self.ups), ("down", self.downs))
            for projection in ADAPTED
        }

    def load_delta(self, delta: Delta) -> None:
        """Take the factors out of a difference."""
        with torch.no_grad():
            for part, factors in (("up", self.ups), ("down", self.downs)):
                for projection in ADAPTED:
                    factors[projection].copy_(delta[f"lora.{projection}.{part}"])

    def _merged(self) -> list[Tensor]:
        return [
            (getattr(self, name) + LORA_SCALE * self.ups[name] @ self.downs[name]).to(self.dtype) for name in ADAPTED
        ]

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        size = self.shape.hidden // self.shape.heads
        exponent = torch.arange(0, size, 2, device=positions.device).float() / size
        angles = positions[:, None, :, None].float() * self.shape.rope_theta**-exponent
        return angles.cos().to(self.dtype).repeat(1, 1, 1, 2), angles.sin().to(self.dtype).repeat(1, 1, 1, 2)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self.shape.norm_eps)

    def forward(self, hidden: Tensor, positions: Tensor, edges: Tensor) -> Tensor:
        """Final hidden states after the last norm, ``[B, S, d]``.

        Args:
            hidden: ``[B, S, d]``, embeddings of text and image.
            positions: ``[B, S]``.
            edges: bool ``[B, S, S]``, who (row) sees whom (column).
        """
        shape, (batch, length, width) = self.shape, hidden.shape
        size, groups = width // shape.heads, shape.heads // shape.key_value_heads
        split = [shape.heads, shape.key_value_heads, shape.key_value_heads]
        cos, sin = self._rotary(positions)
        mask = torch.zeros(edges.shape, dtype=self.dtype, device=edges.device).masked_fill_(~edges, -torch.inf)[:, None]
        query, key, value, out = self._merged()
        joint = torch.cat([query, key, value], dim=1)
        layers = (joint, out, self.gate_up, self.down, *self.norms)
        for qkv, output, gate_up, down, first, second in zip(*(t.unbind(0) for t in layers), strict=True):
            heads = F.linear(self._norm(hidden, first), qkv).view(batch, length, -1, size).transpose(1, 2)
            q, k, v = heads.split(split, dim=1)
            q, k = (x * cos + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1) * sin for x in (q, k))
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
            with sdpa_kernel(_KERNELS):
                mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            hidden = hidden + F.linear(mixed.transpose(1, 2).reshape(batch, length, width), output)
            gate, up = F.linear(self._norm(hidden, second), gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, down)
        return self._norm(hidden, self.last_norm)

    def read(self, pack: Pack, visual: Tensor | None) -> Tensor:
        """Final hidden states of packed prompts, with projected ``visual`` tokens ``[B, V, d]`` filled in."""
        hidden = F.embedding(pack.input_ids, self.embeddings)
        if visual is not None:
            hidden = hidden.masked_scatter(pack.visual[..., None], visual.to(hidden.dtype))
        final: Tensor = self(hidden, pack.positions, pack.visible())
        return final

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: ``[n, d]`` to float32 ``[n, vocabulary]``."""
        return F.linear(hidden, self.embeddings).float()
