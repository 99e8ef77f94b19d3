"""Multi-head latent attention as transformers 5 runs it: latents are cached, and all of them are expanded to keys and
values at every step. Layers that choose keys score all of them and mask what they have not chosen.
"""

from __future__ import annotations

from dataclasses import replace

from planner.spec.config import Config
from planner.spec.facts import Attention


def latent(config: Config) -> Attention:
    """A layer of it, by the decoder's own sizes."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    rank, rope = config.size("kv_lora_rank"), config.size("qk_rope_head_dim")
    nope, value_dim = config.size("qk_nope_head_dim"), config.size("v_head_dim")
    head_dim, query_rank = nope + rope, _query_rank(config)
    return Attention(
        kind="full",
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        value_dim=value_dim,
        query_macs=query_rank * (hidden + heads * head_dim) if query_rank else hidden * heads * head_dim,
        key_macs=hidden * (rank + rope),
        value_macs=0,
        output_macs=heads * value_dim * hidden,
        expand_macs=rank * heads * (nope + value_dim),
        cached_elements=rank + rope,
        expanded_elements=heads * (head_dim + value_dim),
        separable=False,
    )


def _query_rank(config: Config) -> int:
    """Of the queries' own latent; 0 for a plain projection, which a null or a family without a rank means."""
    plain = config.values["q_lora_rank"] is None if config.has("q_lora_rank") else "q_lora_rank" not in config.defaults
    return 0 if plain else config.size("q_lora_rank")


def choosing(config: Config, attention: Attention) -> Attention:
    """DeepSeek's sparse attention: small heads score every key, which is one for all of them, and a weighted sum over
    heads chooses."""
    hidden, heads, size = config.size("hidden_size"), config.size("index_n_heads"), config.size("index_head_dim")
    return replace(
        attention,
        query_macs=attention.query_macs + ((_query_rank(config) or hidden) * size + hidden) * heads,
        key_macs=attention.key_macs + hidden * size,
        cached_elements=attention.cached_elements + size,
        index_macs=heads * size + heads,
    )


def large4(config: Config, attention: Attention, index: int) -> Attention:
    """Mistral Large 4: every fourth layer rotates nothing, so that its heads have all of their keys from the latent;
    layers may read the latents of an earlier one, and the choice that one has made."""
    hidden, rank, rope = config.size("hidden_size"), config.size("kv_lora_rank"), config.size("qk_rope_head_dim")
    if not _listed(config, "no_rope_layers", index, (index + 1) % 4):
        expand = attention.expand_macs + rank * attention.heads * rope
        attention, rope = replace(attention, expand_macs=expand), 0
    if _listed(config, "kv_source_layers", index, index) == index:
        attention = replace(attention, key_macs=hidden * (rank + rope), cached_elements=rank + rope)
    else:
        attention = replace(attention, key_macs=0, cached_elements=0, shares_kv=True)
    chooses = _listed(config, "indexer_types", index, "full") == "full"
    return choosing(config, attention) if chooses else attention


def _listed(config: Config, name: str, index: int, otherwise: object) -> object:
    """What a list over layers says of one; `otherwise` where there is no list."""
    listed = config.get(name)
    return otherwise if listed is None else listed[index]
