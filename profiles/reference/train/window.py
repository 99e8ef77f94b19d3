"""Restrict the attention of each decoder layer by an explicit mask, and run the decoder under such masks.

Slow and obvious on purpose: every token is computed in every layer and only edges are removed, so this is what the
reference models are trained and judged with, independent of any runtime that really computes less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from .packing import Pack

Ranker = Callable[[Any, Tensor, Tensor, tuple[Tensor, Tensor]], Tensor]


@dataclass
class Window:
    """What each image of a batch may use; layers are counted from 0, every field but the filter is ``[B]``.

    Attributes:
        alone: in layers ``[0, alone)`` a visual query sees only itself.
        closed: in layers ``[0, closed)`` text does not see visual keys.
        exit: in layers ``[exit, L)`` text does not see visual keys.
        keep: number of visual tokens kept after layer ``filter``; the others are invisible to all from the next layer.
        filter: that layer.
    """

    alone: Tensor
    closed: Tensor
    exit: Tensor
    keep: Tensor
    filter: int

    @classmethod
    def uniform(
        cls,
        batch: int,
        layers: int,
        alone: int = 0,
        closed: int = 0,
        exit: int | None = None,
        keep: int | None = None,
        filter: int = 3,
    ) -> Window:
        """The same window for ``batch`` images; no argument restricts nothing."""
        end, most = layers if exit is None else exit, 2**31 if keep is None else keep
        fields = [torch.full((batch,), value) for value in (alone, closed, end, most)]
        return cls(fields[0], fields[1], fields[2], fields[3], filter)

    def to(self, device: torch.device) -> Window:
        """The same window on another device."""
        return Window(
            self.alone.to(device), self.closed.to(device), self.exit.to(device), self.keep.to(device), self.filter
        )

    def edges(self, layer: int, visible: Tensor, visual: Tensor, rank: Tensor) -> Tensor:
        """Attention edges of one layer, ``[B, S, S]``.

        Args:
            layer: index of the layer.
            visible: ``[B, S, S]``, the edges without restriction.
            visual: ``[B, S]``, true at visual tokens.
            rank: ``[B, S]``, place of each visual token in the order of keeping, from 0.
        """
        query, key = visual[:, :, None], visual[:, None, :]
        itself = torch.eye(visual.shape[1], dtype=torch.bool, device=visual.device)
        removed = query & ~itself & (layer < self.alone)[:, None, None]
        blind = (layer < self.closed) | (layer >= self.exit)
        removed = removed | (~query & key & blind[:, None, None])
        if layer > self.filter:
            dropped = visual & (rank >= self.keep[:, None])
            # A dropped token still sees itself: nobody reads it, and an empty softmax row would be NaN.
            removed = removed | (dropped[:, None, :] & ~itself)
        return visible & ~removed


def embed(model: LlavaForConditionalGeneration, pack: Pack, features: Tensor) -> Tensor:
    """Input of layer 0, ``[B, S, d]``: token embeddings, with the projected ``features`` ``[B, 144, dv]`` filled in."""
    embedded = model.get_input_embeddings()(pack.input_ids)
    projected = model.model.multi_modal_projector(features.to(embedded.dtype))
    filled: Tensor = embedded.masked_scatter(pack.visual[..., None], projected)
    return filled


def random_ranks(visual: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A random order of each row's visual tokens: ``[B, S]``, from 0; other tokens get no place."""
    noise = torch.rand(visual.shape, generator=generator).to(visual.device).masked_fill(~visual, 2.0)
    return noise.argsort(dim=1).argsort(dim=1)


def l2_ranker(pack: Pack) -> Ranker:
    """Rank visual tokens by their influence on the last prompt token, one question per image.

    VisiPruner's l2: the root over the heads of ``w[h, j]^2 |v[h, j]|^2``, from the layer's own weights and values.
    """

    def rank(layer: Any, hidden: Tensor, edges: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        attention, shape = layer.self_attn, (*hidden.shape[:2], -1, layer.self_attn.head_dim)
        normed = layer.input_layernorm(hidden)
        heads = [f(normed).view(shape).transpose(1, 2) for f in (attention.q_proj, attention.k_proj, attention.v_proj)]
        query, key = apply_rotary_pos_emb(heads[0], heads[1], *rotary)
        groups = attention.num_key_value_groups
        key, value = key.repeat_interleave(groups, 1), heads[2].repeat_interleave(groups, 1)
        row, column = pack.ask.unbind(1)
        scores = torch.einsum("bhd,bhsd->bhs", query[row, :, column], key) * attention.scaling
        weights = scores.masked_fill(~edges[row, column][:, None], -torch.inf).softmax(-1)
        influence = (weights * value.norm(dim=-1)).square().sum(1).masked_fill(~pack.visual, -1.0)
        order: Tensor = influence.argsort(dim=1, descending=True).argsort(dim=1)
        return order

    return rank


def run_decoder(
    model: LlavaForConditionalGeneration, pack: Pack, features: Tensor, window: Window, rank: Tensor | Ranker
) -> Tensor:
    """Final hidden states ``[B, S, d]`` (after the last norm) under ``window``.

    Args:
        features: ``[B, 144, dv]``, the tower's output.
        rank: ``[B, S]``, the order in which visual tokens are kept; or a function that finds it at the filter layer.
    """
    decoder = model.model.language_model
    hidden = embed(model, pack, features)
    rotary = decoder.rotary_emb(hidden, position_ids=pack.positions)
    visible = pack.visible()
    order = rank if isinstance(rank, Tensor) else torch.zeros_like(pack.segment)
    for index, layer in enumerate(decoder.layers):
        edges = window.edges(index, visible, pack.visual, order)
        if index == window.filter and not isinstance(rank, Tensor):
            order = rank(layer, hidden, edges, rotary)
        hidden = layer(hidden, attention_mask=edges[:, None], position_embeddings=rotary, position_ids=pack.positions)
    normed: Tensor = decoder.norm(hidden)
    return normed


def predict_answers(model: LlavaForConditionalGeneration, pack: Pack, hidden: Tensor) -> Tensor:
    """Most likely next token behind each question, ``[n]``, in the pack's order of questions."""
    row, column = pack.ask.unbind(1)
    tokens: Tensor = model.lm_head(hidden[row, column]).argmax(-1)
    return tokens
