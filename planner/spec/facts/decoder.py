"""The text decoder's facts, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

AttentionKind = Literal["full", "sliding", "chunked", "cross", "linear"]


@dataclass(frozen=True)
class Attention:
    """Attention of one decoder layer.

    Attributes:
        kind: ``full``; ``sliding`` or ``chunked`` over `window` tokens; ``cross`` (text reads visual tokens that are
            never in the sequence); ``linear`` (a recurrent state of fixed size in place of a cache).
        heads, kv_heads: query heads and the key/value heads they share.
        head_dim, value_dim: size of a head's queries and keys, and of its values.
        query_macs, key_macs, value_macs, output_macs: projections, multiply-adds per token.
        window: tokens a sliding or chunked layer can see, itself included; 0 means no limit.
        answer_window: tokens of the answer that a layer can see beside all of the prompt, itself included; 0: all.
        cached_elements: elements the KV cache holds per token.
        expand_macs, expanded_elements: of multi-head latent attention, making keys and values of one cached latent, at
            every step, and the elements a cache of those would hold; 0 elsewhere.
        shares_kv: keys and values are an earlier layer's: nothing is projected or cached. Like `expanded_elements` it
            tells models apart: the digest that binds a plan to its model covers it.
        index_macs: per query-key pair, what chooses blocks of keys before the attention; transformers masks the others
            and computes them all the same.
        before_macs: of the layer's `dense_macs`, what runs before the attention: whoever wants its keys alone needs it.
        separable: queries, keys and values come from projections of their own, so that any of them can be left out.
        state_macs: of a linear layer, its short convolution, per token.
        state_lead: tokens more that the convolution runs over in a prefill; a decode step runs it over two.
        chunk, chunk_macs: of a linear layer with a recurrent state, tokens that a prefill takes at a time, the last
            ones filled up, and the work on each such chunk.
        state_elements, float_state_elements: that a linear layer keeps, in the cache's format and always in float32.
    """

    kind: AttentionKind
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    query_macs: int
    key_macs: int
    value_macs: int
    output_macs: int
    window: int = 0
    answer_window: int = 0
    cached_elements: int = 0
    expand_macs: int = 0
    expanded_elements: int = 0
    shares_kv: bool = False
    separable: bool = True
    index_macs: int = 0
    state_macs: int = 0
    state_lead: int = 0
    chunk: int = 0
    chunk_macs: int = 0
    state_elements: int = 0
    float_state_elements: int = 0
    before_macs: int = 0

    @cached_property
    def projection_macs(self) -> int:
        """All projections of one token, its own latent's expansion included."""
        return self.query_macs + self.key_macs + self.value_macs + self.expand_macs + self.output_macs

    @cached_property
    def pair_macs(self) -> int:
        """One query-key pair over all heads: the score, and the weighted value."""
        return self.heads * (self.head_dim + self.value_dim) + self.index_macs


@dataclass(frozen=True)
class FeedForward:
    """Feed-forward block of one layer: dense, or a mixture of experts.

    Attributes:
        dense_macs: multiply-adds per token outside routed experts: the whole dense block, or router and shared experts.
        front_macs: of `dense_macs`, this layer's share of what runs in front of all layers, for every token of the
            prompt (inputs per layer, of Gemma 3n and 4; Gemma 3n's further hidden states).
        back_macs: of `dense_macs`, the last layer's: what runs behind it, on the rows that are left there (Gemma 3n
            makes one hidden state of several).
        expert_macs: one routed expert, per token.
        visual_expert_macs: the same for visual tokens that have as many experts of their own; 0: they share the others.
        experts: routed experts stored, of a kind.
        experts_run: routed experts executed per token. Llama 4's implementation runs all of them.
        routed: experts that the router picks per token where transformers runs more, 0 elsewhere. Serving engines run
            these alone; the computation that `ModelSpec.digest` stands for does not depend on it.
    """

    dense_macs: int
    expert_macs: int = 0
    visual_expert_macs: int = 0
    experts: int = 0
    experts_run: int = 0
    routed: int = 0
    front_macs: int = 0
    back_macs: int = 0

    @cached_property
    def macs(self) -> int:
        """Multiply-adds executed per token, of text where others differ."""
        return self.dense_macs + self.experts_run * self.expert_macs

    @cached_property
    def visual_macs(self) -> int:
        """Multiply-adds executed per visual token."""
        return self.dense_macs + self.experts_run * (self.visual_expert_macs or self.expert_macs)

    @cached_property
    def uniform(self) -> bool:
        """All rows that the layer sees take the same, and no others anything."""
        return not (self.front_macs or self.back_macs or self.visual_expert_macs)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer."""

    attention: Attention
    ffn: FeedForward


@dataclass(frozen=True)
class Decoder:
    """The text decoder.

    Attributes:
        family: model type of the text configuration.
        intermediate_size: width of the dense feed-forward block, which paper conventions call m.
        head_macs: language-model head, per position.
        deepstack: how many first layers add visual features to their output (elementwise, but it binds the runtime).
        modelled: some layers' cost is a model of an algorithm, not of what a kernel executes.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    deepstack: int = 0
    modelled: bool = False

    @property
    def head_macs(self) -> int:
        return self.hidden_size * self.vocab_size

    @cached_property
    def cross(self) -> bool:
        """True when the image is read by cross-attention and visual tokens are not in the sequence."""
        return any(layer.attention.kind == "cross" for layer in self.layers)

    @cached_property
    def recurrent(self) -> tuple[int, ...]:
        """Layers that keep a state of fixed size, and attend to nothing."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.attention.kind == "linear")

    @cached_property
    def kinds(self) -> tuple[tuple[LayerSpec, tuple[int, ...]], ...]:
        """Each distinct layer with ``prefix``: how many such layers there are before layer i, for i in 0..layers."""
        prefixes: dict[LayerSpec, list[int]] = {layer: [0] for layer in self.layers}
        for layer in self.layers:
            for kind, prefix in prefixes.items():
                prefix.append(prefix[-1] + (kind is layer or kind == layer))
        return tuple((kind, tuple(prefix)) for kind, prefix in prefixes.items())
