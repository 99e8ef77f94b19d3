"""Facts of decoder layers that keep a state in place of a cache: gated-delta layers and gated short convolutions.

The convolution is depthwise and causal. transformers runs it over the prompt and the taps ahead of it, and in a decode
step over two positions, of which it keeps the last.
"""

from __future__ import annotations

from planner.spec.config import Config
from planner.spec.facts import Attention

#: Tokens that transformers' gated-delta rule takes at a time in a prefill.
CHUNK = 64


def gated_delta(config: Config, hidden: int) -> Attention:
    """A gated-delta layer as transformers runs it without kernels of its own: chunk by chunk in a prefill, elementwise
    in a decode step. The triangular solve inside a chunk is no matrix product and not counted, here as by counters.

    Source: "Gated Delta Networks" (Yang et al., 2024), section 3.3; ``torch_chunk_gated_delta_rule`` of Qwen3.5.
    """
    key_heads, heads = config.size("linear_num_key_heads"), config.size("linear_num_value_heads")
    key_dim, value_dim = config.size("linear_key_head_dim"), config.size("linear_value_head_dim")
    keys, values, taps = key_heads * key_dim, heads * value_dim, config.size("linear_conv_kernel_dim")
    channels = 2 * keys + values
    # Pairs of a chunk: keys with keys, queries with keys, and the weighted values. Its meeting with the state: what the
    # state predicts, what it gives to the queries, and its update.
    inside, across = CHUNK * CHUNK * (2 * key_dim + value_dim), 3 * CHUNK * key_dim * value_dim
    return Attention(
        kind="linear",
        heads=heads,
        kv_heads=key_heads,
        head_dim=key_dim,
        value_dim=value_dim,
        query_macs=hidden * keys,
        key_macs=hidden * keys,
        # Value, its output gate, and the two scalars per head that gate the state.
        value_macs=hidden * (2 * values + 2 * heads),
        output_macs=values * hidden,
        separable=False,
        state_macs=taps * channels,
        state_lead=taps - 1,
        chunk=CHUNK,
        chunk_macs=heads * (inside + across),
        state_elements=taps * channels,
        float_state_elements=heads * key_dim * value_dim,
    )


def short_convolution(config: Config, hidden: int) -> Attention:
    """LFM2's operator: two gates and an input from one projection, a depthwise convolution, a projection back."""
    taps = config.size("conv_L_cache")
    return Attention(
        kind="linear",
        heads=1,
        kv_heads=1,
        head_dim=hidden,
        value_dim=hidden,
        query_macs=hidden * hidden,
        key_macs=hidden * hidden,
        value_macs=hidden * hidden,
        output_macs=hidden * hidden,
        separable=False,
        state_macs=taps * hidden,
        state_lead=taps - 1,
        state_elements=taps * hidden,
    )
