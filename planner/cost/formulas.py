"""Multiply-adds of one decoder layer: pure functions of a layer's facts and a segment's row counts.

They hold for ints (exact, of any size), floats and NumPy arrays alike, so that a single cost and a sweep over 1e5
schedules are the same formulas.
"""

from __future__ import annotations

from planner.cost.conventions import FASTV_SYSTEM_TOKENS, Convention
from planner.cost.selector import Number, redistribute_macs
from planner.cost.staircase import Segment
from planner.schedule import kept
from planner.spec.facts import Attention, Decoder, FeedForward, LayerSpec

#: Decoder components in the order tables show them.
DECODER_COMPONENTS = ("attention_projections", "attention_scores", "ffn", "selector")


def layer_macs(
    convention: Convention, layer: LayerSpec, segment: Segment, decoder: Decoder, generic: bool
) -> tuple[Number, ...]:
    """Prefill of one layer: projections, scores, feed-forward, selector, and of the scores those on visual keys.

    Args:
        generic: visual rows that see only themselves also compute queries and keys (any architecture), in place of
            values and outputs only.
    """
    if not convention.real:
        return _paper_macs(convention, segment, decoder)
    attention, ffn = layer.attention, layer.ffn
    if attention.kind == "cross":
        return _cross_macs(attention, ffn.macs, segment)
    visual = 0 if decoder.cross else segment.visual
    if attention.kind == "linear":
        return _recurrent_macs(layer, segment, visual)
    words = segment.system + segment.text
    if segment.alone:
        return _isolated_macs(convention, layer, segment, visual, generic)
    rows = words + visual
    if convention.pairs == "rectangular":
        pairs, visual_pairs = rows * rows, rows * visual
    else:
        pairs, visual_pairs = _causal_pairs(attention, segment, rows, visual)
    edited = redistribute_macs(attention, segment.text, rows) if segment.redistributes else 0
    return (
        rows * attention.projection_macs,
        pairs * attention.pair_macs,
        _fed(ffn, words, visual, segment),
        edited,
        visual_pairs * attention.pair_macs,
    )


def _fed(ffn: FeedForward, words: Number, visual: Number, segment: Segment) -> Number:
    """Feed-forward of text rows and visual ones, and what runs in front of all layers, before any row is dropped, and
    behind them, on the rows that are left. Where visual rows have experts of their own, those take the marks around
    pictures too."""
    if ffn.uniform:
        return (words + visual) * ffn.macs
    dropped = segment.system + segment.prompt_text + segment.prompt_visual - words - visual
    gone = segment.gone + visual if segment.alone else segment.gone
    around = dropped * ffn.front_macs - gone * ffn.back_macs
    if not ffn.visual_expert_macs:
        return around + (words + visual) * ffn.macs
    marks = least(segment.marks, words)
    return around + (words - marks) * ffn.macs + (visual + marks) * ffn.visual_macs


def _recurrent_macs(layer: LayerSpec, segment: Segment, visual: Number) -> tuple[Number, ...]:
    """A layer with a state. Visual rows that run alone are each a decode step, from a fresh state."""
    attention, words = layer.attention, segment.system + segment.text
    together = words if segment.alone else words + visual
    alone = visual if segment.alone and not segment.streamed else 0 * visual
    rows = together + alone
    state = _state_macs(attention, together) + alone * _step_macs(attention)
    return rows * attention.projection_macs, state, _fed(layer.ffn, words, rows - words, segment), 0, 0


def _step_macs(attention: Attention) -> int:
    """Convolution of one more row, which transformers computes at two positions; its state is updated elementwise."""
    return 2 * attention.state_macs


def _state_macs(attention: Attention, rows: Number) -> Number:
    """Convolution and recurrent state of a linear layer in a prefill."""
    chunks = -(-rows // attention.chunk) if attention.chunk else 0 * rows
    return (rows + attention.state_lead) * attention.state_macs + chunks * attention.chunk_macs


def _isolated_macs(
    convention: Convention, layer: LayerSpec, segment: Segment, visual: Number, generic: bool
) -> tuple[Number, ...]:
    """A layer in which no visual row sees another one."""
    attention, words = layer.attention, segment.system + segment.text
    is_read = segment.merge or segment.reads
    computed = 0 * visual if segment.streamed else visual
    fast = not generic and attention.separable
    per_row = _isolated_projections(attention, is_read, segment, fast)
    causal = convention.pairs == "causal"
    text_pairs = _causal(attention, 0, words) if causal else words * words
    read = (_text_to_visual(attention, segment) if causal else words * visual) if is_read else 0 * visual
    # Own keys: a dense kernel runs them, but for rows that see only themselves in their fast form; those have no pair.
    own = computed if segment.prefix or not (fast or causal) else 0 * visual
    ahead = _visual_to_prefix(attention, segment, causal) if segment.prefix and not segment.streamed else 0 * visual
    visual_pairs = read + own
    edited = redistribute_macs(attention, segment.text, words + visual) if segment.redistributes else 0
    return (
        words * attention.projection_macs + visual * per_row,
        (text_pairs + visual_pairs + ahead) * attention.pair_macs,
        _fed(layer.ffn, words, computed, segment),
        edited,
        visual_pairs * attention.pair_macs,
    )


def _visual_to_prefix(attention: Attention, segment: Segment, causal: bool) -> Number:
    """Pairs of a visual row and the text before it. As a mask cuts nothing off, text between images meets every visual
    row; a causal count knows one image, and leaves it out."""
    system, visual = segment.system, segment.visual
    if not causal:
        return visual * (system + segment.between)
    return (
        _causal(attention, 0, system + visual)
        - _causal(attention, 0, system)
        - _causal(attention, system, system + visual)
    )


def _isolated_projections(attention: Attention, is_read: bool, segment: Segment, fast: bool) -> int:
    """Projections of one visual row that sees no other one.

    If it sees only itself, its attention output is its value: no query, and a key only where text reads it. Where it
    skips the layer, or its states come from a cached stream, keys and values are all that text needs of it. The generic
    form leaves nothing out.
    """
    streamed = segment.streamed
    if streamed and not is_read:
        return 0
    if fast and (streamed or not segment.prefix):
        inputs = attention.value_macs + (attention.key_macs if is_read else 0)
    else:
        inputs = attention.projection_macs - attention.output_macs
    return inputs + (attention.before_macs if streamed else attention.output_macs)


def _causal_pairs(attention: Attention, segment: Segment, rows: Number, visual: Number) -> tuple[Number, Number]:
    """Query-key pairs that a causal mask leaves of ordinary attention, and those whose key is visual."""
    system, seen = segment.system, segment.system + visual
    pairs = _causal(attention, 0, rows)
    if segment.reads:
        return pairs, _causal(attention, system, rows) - _causal(attention, seen, rows)
    return pairs - _text_to_visual(attention, segment), _causal(attention, system, seen)


def _text_to_visual(attention: Attention, segment: Segment) -> Number:
    """Causal pairs of a text row after the image and a visual key."""
    system, rows = segment.system, segment.rows
    seen = system + segment.visual
    apart = _causal(attention, seen, rows) + _causal(attention, system, seen)
    return _causal(attention, system, rows) - apart


def _causal(attention: Attention, first: Number, last: Number) -> Number:
    """Pairs that a causal mask allows among rows ``[first, last)``; windows and chunks count in rows present."""
    rows, window = last - first, attention.window
    if not window:
        return rows * (rows + 1) // 2
    if attention.kind == "chunked":
        # All pairs up to the last row, without those up to the first and those that cross it inside its chunk.
        inside = first % window
        crossing = inside * least(window - inside, rows)
        return _chunks(last, window) - _chunks(first, window) - crossing
    near = least(rows, window)
    return near * (near + 1) // 2 + (rows - near) * window


def _chunks(rows: Number, window: int) -> Number:
    rest = rows % window
    return rows // window * (window * (window + 1) // 2) + rest * (rest + 1) // 2


def _cross_macs(attention: Attention, ffn_macs: int, segment: Segment) -> tuple[Number, ...]:
    """A cross-attention layer: text rows ask, visual tokens answer. Skipped as a whole when there is no image."""
    words, visual = segment.system + segment.text, segment.visual
    rows = words * (visual > 0)
    projections = rows * (attention.query_macs + attention.output_macs) + visual * (
        attention.key_macs + attention.value_macs
    )
    scores = rows * visual * attention.pair_macs
    return projections, scores, rows * ffn_macs, 0, scores


def _paper_macs(convention: Convention, segment: Segment, decoder: Decoder) -> tuple[Number, ...]:
    """``4nd^2 + 2n^2d + c n d m`` with the convention's n and c. Visual rows that see only themselves have no pairs;
    those that see the text before them have one with each token of it that counts, and one with themselves; those that
    skip the layer are not there."""
    hidden, width = decoder.hidden_size, decoder.intermediate_size
    visual = 0 * segment.visual if segment.skip else segment.visual
    others = {"visual": 0, "prefixed": FASTV_SYSTEM_TOKENS, "all": segment.system + segment.text}[convention.rows]
    rows = others + visual
    pairs, visual_pairs = rows * rows, rows * visual
    if segment.alone:
        ahead = {"visual": 0, "prefixed": FASTV_SYSTEM_TOKENS, "all": segment.system}[convention.rows]
        visual_pairs = 1 * visual if segment.prefix else 0 * visual
        pairs = others * others + visual_pairs * (ahead + 1)
    return (
        4 * rows * hidden * hidden,
        2 * pairs * hidden,
        convention.ffn_matrices * rows * hidden * width,
        0,
        2 * visual_pairs * hidden,
    )


def decode_macs(layer: LayerSpec, segment: Segment, decoder: Decoder, ahead: int = 0) -> tuple[Number, ...]:
    """The new row over the cache in one layer of one request: projections, scores, feed-forward, selector; and the
    elements that this cache holds.

    Args:
        ahead: tokens cached after the prompt before this one.
    """
    attention, ffn = layer.attention, layer.ffn
    if attention.kind == "linear":
        return attention.projection_macs, _step_macs(attention), ffn.macs, 0, attention.state_elements
    if attention.kind == "cross":
        asking = 1 * (segment.visual > 0)
        projected = asking * (attention.query_macs + attention.output_macs)
        asked = segment.cached_visual * attention.pair_macs
        return projected, asked, asking * ffn.macs, 0, segment.cached_visual * attention.cached_elements
    held = cached_tokens(attention, segment, decoder, ahead)
    keys = held + 1
    edited = redistribute_macs(attention, 1, keys) if segment.redistributes else 0
    # Latents are expanded anew at every step: the new row's is part of its projections.
    projected = attention.projection_macs + held * attention.expand_macs
    return projected, keys * attention.pair_macs, ffn.macs, edited, held * attention.cached_elements


def cached_tokens(attention: Attention, segment: Segment, decoder: Decoder, ahead: int = 0) -> Number:
    """Tokens a layer's cache holds of one request.

    A windowed layer holds the last ``window - 1`` positions of the whole prompt: the next token completes the
    window. Of pruned tokens, which stay anywhere in their part of the prompt, the share that their part has inside
    is expected there.
    """
    visual = 0 if decoder.cross else segment.cached_visual
    window = attention.window
    reach = window or attention.answer_window
    generated = min(ahead, reach - 1) if reach else ahead
    total: Number = generated if segment.generated is None else kept(segment.generated, generated)
    if not window:
        return segment.system + segment.text + visual + total
    reach = window - 1 - ahead
    parts = ((segment.text, segment.prompt_text), (visual, segment.prompt_visual), (segment.system, segment.system))
    for held, positions in parts:
        inside = min(max(reach, 0), positions)
        total = total + (held if inside == positions else held * inside // positions)
        reach -= positions
    return total


def cached_elements(layer: LayerSpec, segment: Segment, decoder: Decoder, ahead: int = 0) -> Number:
    """Elements a layer's cache holds of one request."""
    attention = layer.attention
    if attention.kind == "linear":
        return attention.state_elements
    if attention.kind == "cross":
        return segment.cached_visual * attention.cached_elements
    return cached_tokens(attention, segment, decoder, ahead) * attention.cached_elements


def least(one: Number, other: Number) -> Number:
    """The smaller of two numbers, entry by entry for arrays; ints stay ints."""
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return min(one, other)
    import numpy as np

    return np.minimum(one, other)
