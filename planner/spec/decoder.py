"""The text decoder's facts: grouped-query and latent attention, windows, shared keys, dense and expert feed-forward.

What a family's file says of a decoder:

    attention, ffn          ``grouped`` or ``latent``; ``gated`` or ``plain``
    experts                 which layers hold them, and the names of the fields that size them
    layer_pattern           kinds of layers where ``layer_types`` is left out; ``first_layers`` stand in place of its
                            first ones, ``pattern_from_end`` counts from the last
    cross_attention         layers that ask the image alone
    by_layer                a function of `planner.spec.latent`: how layers of one kind differ
    gated_attention, gated_output, gated_heads, fused_projections, global_heads, wide_where_borrowing, adjusted_width
                            traits of single families, explained where they are read
    modelled                the cost leaves something out or guesses it, and says so
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from planner.errors import InputError, UnsupportedModelError
from planner.spec.altup import around_layers, before_attention
from planner.spec.config import Config, family, reader
from planner.spec.facts import Attention, Decoder, LayerSpec
from planner.spec.feed_forward import feed_forward, listed_widths, sparse_layers
from planner.spec.latent import latent
from planner.spec.recurrent import gated_delta, short_convolution

#: ``layer_types`` entry -> kind of attention. Anything else is refused by name.
_KINDS = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "reference_sliding_attention": "answer",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    "conv": "conv",
    "cross_attention": "cross",
    "minimax_m3_sparse": "indexed",
    "indexed_attention": "indexed",
}


def read_decoder(values: Mapping[str, Any], model_type: str, where: str = "text_config") -> Decoder:
    """Facts of a text decoder.

    Args:
        values: its configuration block.
        model_type: its model type, which the block may leave out.
        where: how errors name the block.

    Raises:
        InputError: a field is missing or absurd.
        UnsupportedModelError: the model type or a layer type is unknown.
    """
    data = family(model_type, "decoder")
    config = Config(values, where, data)
    types = _layer_types(config, data)
    window = _window(config)
    chunk = config.size("attention_chunk_size", default=LARGEST_WINDOW)
    window_of = {"sliding": window, "answer": window, "chunked": chunk}
    attention_of = {}
    for kind in dict.fromkeys(types):
        attention_of[kind] = _attention(config, data, kind, window_of.get(kind, 0))
    sparse = sparse_layers(config, data, len(types))
    borrowing = config.size("num_kv_shared_layers", default=0, least=0)
    wide = 2 if data.get("wide_where_borrowing") and config.get("use_double_wide_mlp") else 1
    widths = listed_widths(config, len(types))
    kinds = [
        (is_sparse, wide if index >= len(types) - borrowing else 1, index if widths else 0)
        for index, is_sparse in enumerate(sparse)
    ]
    blocks = {kind: feed_forward(config, data, *kind) for kind in set(kinds)}
    placed = reader(data, "by_layer", "planner.spec.latent") if "by_layer" in data else None
    layers = []
    for index, (kind, block) in enumerate(zip(types, kinds, strict=True)):
        attention = placed(config, attention_of[kind], index) if placed else attention_of[kind]
        borrows = index >= len(types) - borrowing
        layers.append(LayerSpec(_borrowing(attention) if borrows else attention, blocks[block]))
    decoder = Decoder(
        family=model_type,
        hidden_size=config.size("hidden_size"),
        # Papers know of one: the mean.
        intermediate_size=sum(widths) // len(widths) if widths else config.size("intermediate_size", "ffn_dim"),
        vocab_size=config.size("vocab_size"),
        layers=tuple(layers),
        modelled=bool(data.get("modelled")),
    )
    around = around_layers(config)
    return with_around(decoder, around, around)


def with_around(decoder: Decoder, front: int, back: int = 0) -> Decoder:
    """A decoder that does more in front of its layers and behind them.

    Args:
        front: multiply-adds for every token of the prompt.
        back: the same on every row that is left behind the last layer.
    """
    if not (front or back):
        return decoder
    layers = list(decoder.layers)
    for index, front_macs, back_macs in ((0, front, 0), (-1, 0, back)):
        ffn = layers[index].ffn
        more = replace(
            ffn,
            dense_macs=ffn.dense_macs + front_macs + back_macs,
            front_macs=ffn.front_macs + front_macs,
            back_macs=ffn.back_macs + back_macs,
        )
        layers[index] = replace(layers[index], ffn=more)
    return replace(decoder, layers=tuple(layers))


#: Stands for "no limit" where a configuration has no window.
LARGEST_WINDOW = 1 << 30


def _window(config: Config) -> int:
    return config.size("sliding_window", default=LARGEST_WINDOW, least=0) or LARGEST_WINDOW


def _layer_types(config: Config, data: Mapping[str, Any]) -> tuple[str, ...]:
    """Kind of attention per layer: as the configuration lists it, else by the family's pattern."""
    count = config.layers("num_hidden_layers")
    listed = config.get("layer_types")
    if listed is None:
        listed = _by_pattern(config, data, count)
    if len(listed) != count:
        raise InputError(
            f"{config.where}.layer_types lists {len(listed)} layers and num_hidden_layers says {count}",
            "Check the configuration",
        )
    unknown = next((name for name in listed if name not in _KINDS), None)
    if unknown is not None:
        raise UnsupportedModelError(
            f"layer type '{unknown}' of '{data['model_type']}' is not known, and its cost is not guessed",
            f"Known: {', '.join(_KINDS)}",
        )
    kinds = [_KINDS[name] for name in listed]
    crossing = config.numbers("cross_attention_layers")
    if data.get("cross_attention"):
        kinds = ["cross" if index in crossing else kind for index, kind in enumerate(kinds)]
    # Layers may be called sliding and have no window: none is the default, or a null switches it off.
    switched_off = config.has("sliding_window") and config.values["sliding_window"] is None
    if switched_off or _window(config) == LARGEST_WINDOW:
        kinds = ["full" if kind == "sliding" else kind for kind in kinds]
    return tuple(kinds)


def _by_pattern(config: Config, data: Mapping[str, Any], count: int) -> list[str]:
    pattern = data.get("layer_pattern", ["full_attention"])
    if config.get("use_sliding_window"):
        full = config.size("max_window_layers", default=0, least=0)
        return ["full_attention" if index < full else "sliding_attention" for index in range(count)]
    every = config.get(
        "sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval", "full_attention_interval"
    )
    if every is not None and len(pattern) > 1:
        pattern = [pattern[0]] * (every - 1) + ["full_attention"]
    if data.get("pattern_from_end"):
        return [pattern[-1 - (count - 1 - index) % len(pattern)] for index in range(count)]
    first = data.get("first_layers", [])
    return [first[index] if index < len(first) else pattern[index % len(pattern)] for index in range(count)]


def _attention(config: Config, data: Mapping[str, Any], kind: str, window: int) -> Attention:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise InputError(
            f"{config.where}: {heads} attention heads cannot share {kv_heads} key/value heads evenly",
            "Check the configuration",
        )
    if kind == "linear":
        return gated_delta(config, hidden)
    if kind == "conv":
        return short_convolution(config, hidden)
    if data["attention"] == "latent":
        return latent(config)
    head_dim = config.size("head_dim", default=max(hidden // heads, 1))
    if kind == "answer":
        return replace(_attention(config, data, "full", 0), answer_window=window)
    if kind == "indexed":
        return _indexed(config, _attention(config, data, "full", window))
    if kind == "sliding":
        heads = config.size("num_sliding_attention_heads", default=heads)
    shared = False
    if data.get("global_heads") and kind == "full":
        head_dim, kv_heads, shared = _global_heads(config, kv_heads)
    gate = 2 if data.get("gated_attention") else 1
    return Attention(
        kind=kind,  # type: ignore[arg-type]
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        query_macs=gate * hidden * heads * head_dim,
        key_macs=hidden * kv_heads * head_dim,
        value_macs=0 if shared else hidden * kv_heads * head_dim,
        # A gate on the output with a projection of its own belongs to it: it runs whether or not queries do.
        output_macs=(2 if data.get("gated_output") else 1) * heads * head_dim * hidden
        + (heads * hidden if data.get("gated_heads") else 0),
        window=0 if window >= LARGEST_WINDOW else window,
        cached_elements=2 * kv_heads * head_dim,
        separable=gate == 1 and not shared and not data.get("fused_projections", False),
        before_macs=before_attention(config),
    )


def _global_heads(config: Config, kv_heads: int) -> tuple[int, int, bool]:
    """Of Gemma 4's layers that see everything: their head size, their key/value heads, and whether values are keys.

    Its class saves them layer by layer, its checkpoints on the hub once.
    """
    listed = config.get("per_layer_config", default={})
    own = Config(next(iter(listed.values()), {}), f"{config.where}.per_layer_config")
    shared = bool(config.get("attention_k_eq_v"))
    head_dim = own.size("head_dim", default=config.size("global_head_dim"))
    fewer = own.size("num_key_value_heads", default=config.size("num_global_key_value_heads", default=kv_heads))
    return head_dim, fewer if shared else kv_heads, shared


def _indexed(config: Config, attention: Attention) -> Attention:
    """MiniMax M3's sparse layers: small heads of their own score every key, and blocks of keys are chosen by that."""
    hidden, heads, head_dim = config.size("hidden_size"), config.size("index_n_heads"), config.size("index_head_dim")
    return replace(
        attention,
        query_macs=attention.query_macs + hidden * heads * head_dim,
        key_macs=attention.key_macs + hidden * head_dim,
        cached_elements=attention.cached_elements + head_dim,
        index_macs=heads * head_dim,
        separable=False,
    )


def _borrowing(attention: Attention) -> Attention:
    """The same layer with keys and values taken from an earlier layer."""
    return replace(attention, key_macs=0, value_macs=0, cached_elements=0, shares_kv=True)
