"""The FLOP counter against numbers derived by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from planner.runtime.count import FlopCounter, attention_flops, grouped_product_flops
from tests import tiny


def test_matrix_products_count_two_flops_a_multiply_add() -> None:
    with FlopCounter() as counter:
        torch.ones(3, 5) @ torch.ones(5, 7)
        torch.ones(2, 3, 5) @ torch.ones(2, 5, 7)
        nn.Linear(5, 7)(torch.ones(4, 5))
    assert counter.by_operator == {"mm": 2 * 3 * 5 * 7, "bmm": 2 * 2 * 3 * 5 * 7, "addmm": 2 * 4 * 5 * 7}
    assert counter.total == 210 + 420 + 280


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fused_attention_on_cpu_counts_its_rectangle(masked: bool, dtype: torch.dtype) -> None:
    query, key, value = torch.ones(2, 4, 3, 8, dtype=dtype), torch.ones(2, 4, 10, 8, dtype=dtype), None
    mask = torch.ones(3, 10, dtype=torch.bool) if masked else None
    value = key.clone()
    with FlopCounter() as counter:
        functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # Scores and weighted sum: 2 products of (2 * 4) matrices, 3 x 8 x 10 multiply-adds each.
    assert counter.total == 2 * (2 * 4) * (2 * 3 * 8 * 10)
    with FlopCounterMode(display=False) as torch_counter:
        functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch_counter.get_total_flops() == 0, "torch counts it by itself now: the repair can go"


def test_grouped_query_attention_counts_query_heads() -> None:
    query, key = torch.ones(1, 6, 5, 8), torch.ones(1, 2, 5, 8)
    with FlopCounter() as counter:
        functional.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
    assert counter.total == 2 * 6 * (2 * 5 * 8 * 5)


def test_attention_with_values_of_another_size() -> None:
    assert attention_flops((1, 4, 3, 24), (1, 2, 10, 24), (1, 2, 10, 16)) == 4 * (2 * 3 * 24 * 10 + 2 * 3 * 10 * 16)


def test_grouped_product_counts_each_row_once() -> None:
    rows, weights = torch.ones(6, 8), torch.ones(3, 8, 16)
    with FlopCounter() as counter:
        torch._grouped_mm(rows, weights, offs=torch.tensor([1, 4, 6], dtype=torch.int32))
    assert counter.by_operator == {"_grouped_mm": 2 * 6 * 8 * 16}


@pytest.mark.parametrize(
    ("rows", "weights", "flops"),
    [
        ((6, 8), (3, 8, 16), 2 * 6 * 8 * 16),
        ((3, 6, 8), (3, 8, 16), 3 * 2 * 6 * 8 * 16),
        ((6, 9), (9, 4), 2 * 6 * 9 * 4),
    ],
)
def test_grouped_product_forms(rows: tuple[int, ...], weights: tuple[int, ...], flops: int) -> None:
    assert grouped_product_flops(rows, weights, None) == flops


class RotaryTable(nn.Module):
    """As transformers wrote it up to 5.17."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(4))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.inv_freq[None, :, None] @ positions[:, None].float()


def test_rotary_tables_are_left_out() -> None:
    rotary, positions = RotaryTable(), torch.arange(9)[None]
    with FlopCounter() as counter:
        rotary(positions)
        torch.ones(2, 3) @ torch.ones(3, 2)
    assert counter.total == 24
    with FlopCounterMode(display=False) as torch_counter:
        rotary(positions)
    assert torch_counter.get_total_flops() == 2 * 4 * 9


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_llama_by_hand(attn: str) -> None:
    """Hidden 32, 4 query and 2 key/value heads of 8, FFN 48, vocabulary 128, 4 layers, 10 tokens."""
    model, tokens = tiny.model("llama", torch.float32, attn), 10
    with torch.no_grad(), FlopCounter() as counter:
        model(**tiny.inputs("llama"))
    projections = 2 * tokens * (2 * 32 * 32 + 2 * 32 * 16)
    scores = 2 * 2 * tokens * tokens * 32
    ffn = 2 * tokens * 3 * 32 * 48
    head = 2 * tokens * 32 * 128
    assert counter.total == 4 * (projections + scores + ffn) + head
    modules = counter.by_module()
    assert modules["LlamaForCausalLM.model.layers.2.self_attn"] == projections + scores
    assert modules["LlamaForCausalLM.model.layers.2.mlp"] == ffn
    assert modules["LlamaForCausalLM.lm_head"] == head
    assert counter.by_module(depth=1) == {"LlamaForCausalLM": counter.total}
    assert sum(counter.by_operator.values()) == counter.total


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm", "eager"])
def test_a_mixture_of_experts_by_hand(experts: str) -> None:
    """As above with 2 of 4 experts of 48 for each token, and a router."""
    model = tiny.model("mixtral", torch.float32, fresh=True)
    if not hasattr(model, "set_experts_implementation"):
        pytest.skip("this transformers has one implementation")
    model.set_experts_implementation(experts)
    with torch.no_grad(), FlopCounter() as counter:
        model(**tiny.inputs("mixtral"))
    attention = 2 * 10 * (2 * 32 * 32 + 2 * 32 * 16) + 2 * 2 * 10 * 10 * 32
    moe = 2 * (2 * 10 * 3 * 32 * 48) + 2 * 10 * 32 * 4
    assert counter.total == 4 * (attention + moe) + 2 * 10 * 32 * 128


def test_meta_tensors_count_the_same() -> None:
    with torch.device("meta"), FlopCounter() as counter:
        nn.Linear(5, 7, bias=False)(torch.empty(4, 5))
    assert counter.total == 2 * 4 * 5 * 7


def test_nothing_stays_behind_after_an_exception() -> None:
    registry_before = dict(flop_registry)
    hooks_before = (dict(torch_module._global_forward_pre_hooks), dict(torch_module._global_forward_hooks))
    counter = FlopCounter()
    with pytest.raises(RuntimeError, match="cannot be multiplied"), counter:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert dict(flop_registry) == registry_before
    assert (dict(torch_module._global_forward_pre_hooks), dict(torch_module._global_forward_hooks)) == hooks_before
    torch.ones(2, 3) @ torch.ones(3, 2)
    assert counter.total == 0
    with counter:
        torch.ones(2, 3) @ torch.ones(3, 2)
    assert counter.total == 24
