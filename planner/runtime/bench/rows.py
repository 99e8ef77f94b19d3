"""Dense times at several numbers of rows: what a device's constants are fitted to (`planner.cost.fit`)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from planner.runtime.bench.clock import Clock, now, tower_clock
from planner.runtime.model.adapters import Parts, find_parts

#: Prompt lengths that tell computing, reading and overhead apart, beside that of a request.
FITTED_ROWS = (8, 32, 96, 256)


@dataclass(frozen=True)
class RowTimes:
    """Times of a text-only prompt, medians over the rounds.

    Attributes:
        rows: its length.
        products_ms: the matrix products of all decoder layers and nothing else.
        attention_ms: the fused attention kernel of all decoder layers and nothing else.
        decoder_ms: the text tower.
    """

    rows: int
    products_ms: float
    attention_ms: float
    decoder_ms: float


def row_times(model: Any, rows: Sequence[int], text_id: int, rounds: int, read: Clock | None = None) -> list[RowTimes]:
    """Measure a model dense, without an image.

    Args:
        rows: prompt lengths.
        text_id: an ordinary text token.
        rounds: measured rounds after one that is not counted; each goes through all lengths.
        read: another clock than wall time, such as `time.process_time` on a shared machine.
    """
    parts = find_parts(model)
    device = model.device
    clock = read or (lambda: now(device))
    spent: dict[int, list[tuple[float, float, float]]] = {count: [] for count in rows}
    with torch.inference_mode():
        for number in range(1 + rounds):
            for count in rows:
                products = _seconds(_products(parts, count), clock)
                attention = _seconds(_attention(parts, count), clock)
                ids = torch.full((1, count), text_id, device=device)
                with tower_clock(model, device, clock) as spans:
                    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)
                if number:
                    spent[count].append((products, attention, spans[0]))
    return [
        RowTimes(count, *(1e3 * statistics.median(times) for times in zip(*spent[count], strict=True)))
        for count in rows
    ]


def _seconds(call: Callable[[], None], clock: Clock) -> float:
    started = clock()
    call()
    return clock() - started


def product_elements(model: Any) -> int:
    """Weights in the matrix products that `row_times` runs."""
    return sum(module.weight.numel() for layer in find_parts(model).layers for module in _linear(layer))


def _linear(layer: nn.Module) -> list[nn.Linear]:
    return [module for module in layer.modules() if isinstance(module, nn.Linear)]


def _products(parts: Parts, count: int) -> Callable[[], None]:
    modules = [module for layer in parts.layers for module in _linear(layer)]
    inputs = {
        module.in_features: torch.randn(1, count, module.in_features, device=module.weight.device).to(module.weight)
        for module in modules
    }

    def multiply() -> None:
        for module in modules:
            module(inputs[module.in_features])

    return multiply


def _attention(parts: Parts, count: int) -> Callable[[], None]:
    config, like = parts.model.config.get_text_config(), next(parts.tower.parameters())
    size = getattr(config, "head_dim", None) or config.hidden_size // parts.heads
    shared = parts.heads // (getattr(config, "num_key_value_heads", None) or parts.heads)
    query, key, value = (
        torch.randn(1, heads, count, size, device=like.device).to(like.dtype)
        for heads in (parts.heads, parts.heads // shared, parts.heads // shared)
    )

    def attend() -> None:
        for _ in parts.layers:
            functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=shared > 1)

    return attend
