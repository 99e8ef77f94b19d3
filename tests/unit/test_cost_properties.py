"""What must hold for any model, workload and policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import COMPONENTS, CONVENTIONS, cost, latency, sweep
from planner.cost.hardware import hardware
from planner.cost.sweeping import POLICIES
from planner.errors import InputError, ScheduleError
from planner.policies import parse
from planner.schedule import dense
from planner.spec import ModelSpec
from planner.workload import Workload

LAYERS = 12


def text(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
        **changes,
    }


CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def llava(**changes: Any) -> ModelSpec:
    decoder = text(**{"model_type": "llama", **changes})
    return ModelSpec.from_config(
        {"model_type": "llava", "image_token_index": 499, "text_config": decoder, "vision_config": CLIP}
    )


SPECS = {
    "plain": llava(),
    "windows": llava(model_type="gemma2", head_dim=16, sliding_window=24),
    "experts": llava(
        model_type="qwen3_moe", head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20,
        decoder_sparse_step=2,
    ),
    "latent": llava(
        model_type="deepseek_v3", kv_lora_rank=16, q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=12, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=20,
        first_k_dense_replace=1,
    ),
    "linear": llava(
        model_type="qwen3_5_text", head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, linear_conv_kernel_dim=4,
    ),
}  # fmt: skip
workloads = st.builds(
    Workload,
    visual_tokens=st.integers(1, 200),
    text_tokens=st.integers(1, 60),
    system_tokens=st.integers(0, 20),
    batch=st.integers(1, 3),
)
specs = st.sampled_from(sorted(SPECS))


def price(spec: ModelSpec, workload: Workload, policy: str, convention: str = "exact") -> Any:
    return cost(spec, workload, parse(policy).schedule(spec, workload), convention)


@settings(deadline=None, max_examples=60)
@given(name=specs, workload=workloads, k=st.integers(1, LAYERS - 1), ratios=st.tuples(*[st.floats(0, 1)] * 2))
def test_dropping_more_never_costs_more(name: str, workload: Workload, k: int, ratios: tuple[float, float]) -> None:
    few, many = sorted(ratios)
    less, more = (price(SPECS[name], workload, f"random:k={k},ratio={ratio:.6f}") for ratio in (few, many))
    whole = price(SPECS[name], workload, "dense")
    for figure in ("prefill_flops", "decode_flops_per_token", "kv_cache_bytes", "visual_attention"):
        assert getattr(more, figure) <= getattr(less, figure) <= getattr(whole, figure)


@settings(deadline=None, max_examples=40)
@given(name=specs, workload=workloads, keep=st.integers(1, 50), bounds=st.tuples(*[st.integers(0, LAYERS - 2)] * 2))
def test_leaving_earlier_never_costs_more(name: str, workload: Workload, keep: int, bounds: tuple[int, int]) -> None:
    early, late = sorted(bounds)
    exits = (
        price(SPECS[name], workload, f"visipruner:filter=0,keep={keep},exit={exit_layer + 2}")
        for exit_layer in (early, late)
    )
    first, second = exits
    assert first.prefill_flops <= second.prefill_flops
    assert first.kv_cache_bytes <= second.kv_cache_bytes


POLICIES_SEEN = (
    "dense",
    "fastv:k=3,ratio=0.7",
    "pyramiddrop",
    "sparsevlm:keep=9/5/2",
    "fitprune:reduction=0.5",
    "prellm:keep=0.5,rank_by=norm",
    "visipruner:filter=4,keep=6,exit=9",
    "visipruner:filter=4,keep=6,exit=9,merge_first=true,rank_by=cos",
    "visipruner:filter=4,keep=6,probe=true",
    "context:layers=4,rate=0.4,protect=2",
    "var:dims=3/7",
    "prellm:keep=0.5,rank_by=norm+visipruner:filter=3,keep=4,exit=7",
)


@pytest.mark.parametrize("policy", POLICIES_SEEN)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_conventions_order_and_sums_agree(name: str, policy: str) -> None:
    spec, workload = SPECS[name], Workload(visual_tokens=57, text_tokens=21, system_tokens=5, batch=2)
    found = {rule: price(spec, workload, policy, rule) for rule in CONVENTIONS}
    assert found["causal"].prefill_flops <= found["exact"].prefill_flops
    # Fewer tokens counted, or fewer matrices, or both: never more.
    assert found["pdrop"].prefill_flops <= found["sparsevlm"].prefill_flops
    for rule, figure in found.items():
        assert set(figure.prefill) == set(figure.decode) == set(COMPONENTS), rule
        assert figure.prefill_flops == pytest.approx(sum(figure.prefill.values()), rel=1e-12)
        assert figure.visual_attention <= max(figure.prefill["attention_scores"], 1) * (
            spec.layers if rule == "fastv" else 1
        ) * (1 + 1e-12)
        if rule in ("exact", "causal"):
            for component, layers in figure.per_layer.items():
                entry = figure.prefill[component] - sum(layers)
                assert entry == 0, (rule, component)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_batch_is_that_many_requests(name: str) -> None:
    one, three = (
        price(SPECS[name], Workload(visual_tokens=40, batch=batch), "fastv:k=2,ratio=0.5") for batch in (1, 3)
    )
    assert three.prefill_flops == 3 * one.prefill_flops
    assert three.kv_cache_bytes == 3 * one.kv_cache_bytes
    assert three.decode_flops_per_token == one.decode_flops_per_token


# A window forgets what a longer prefill still pairs in part, and a latent is expanded again at every step.
@pytest.mark.parametrize("name", sorted(set(SPECS) - {"windows", "latent"}))
def test_one_decode_step_is_a_prefill_of_one_more_row(name: str) -> None:
    """Dense, full attention: prefill of n + 1 minus prefill of n, with causal pairs, is a decode step without its
    head."""
    spec = SPECS[name]
    shorter, longer = (cost(spec, Workload(visual_tokens=40, text_tokens=n), dense(LAYERS), "causal") for n in (20, 21))
    step = shorter.decode_flops_per_token - shorter.decode["lm_head"]
    assert longer.prefill_flops - shorter.prefill_flops == step


RANGES = {
    "k": (1, LAYERS - 1),
    "filter": (1, LAYERS - 3),
    "exit": (LAYERS - 1, LAYERS),
    "keep": (1, 80),
}


@pytest.mark.parametrize("name", sorted(SPECS))
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_sweep_is_the_scalar_path(policy: str, name: str) -> None:
    """Exactly: every integer, and the estimated times to rounding."""
    spec, draw = SPECS[name], np.random.default_rng(3)
    workload = Workload(visual_tokens=57, text_tokens=21, system_tokens=5, batch=2, output_tokens=9)
    names = POLICIES[policy][1]
    axes: dict[str, Any] = {}
    for key in names:
        shares = key == "ratio" or (key == "keep" and policy == "pyramiddrop")
        axes[key] = draw.uniform(0.01, 0.99, 25).round(3) if shares else draw.integers(*RANGES[key], 25, endpoint=True)
    device = hardware("l4")
    spelled = {"visipruner-probe": "visipruner:probe=true,"}.get(policy, f"{policy}:")
    for rule in ("exact", "causal"):
        found = sweep(spec, workload, policy, rule, device, **axes)
        assert found.prefill_ms is not None and found.decode_ms is not None
        for index in range(25):
            one = price(spec, workload, spelled + ",".join(f"{key}={axes[key][index]}" for key in axes), rule)
            time = latency(one, device)
            assert found.prefill_flops[index] == one.prefill_flops
            assert found.visual_attention[index] == one.visual_attention
            assert found.decode_flops_per_token[index] == one.decode_flops_per_token
            assert found.kv_cache_bytes[index] == one.kv_cache_bytes
            assert found.prefill_ms[index] == pytest.approx(time.prefill_ms, rel=1e-12)
            assert found.decode_ms[index] == pytest.approx(time.decode_ms, rel=1e-12)


def test_a_sweep_beyond_64_bits_stays_exact() -> None:
    spec = ModelSpec.from_config("llava-1.5-13b")
    workload = Workload(visual_tokens=1 << 20, batch=1 << 10, text_tokens=100)
    one = price(spec, workload, "fastv:k=3,ratio=0.5")
    assert one.prefill_flops > 1 << 64
    found = sweep(spec, workload, "fastv", k=[3], ratio=[0.5])
    assert found.prefill_flops[0] == one.prefill_flops
    assert found.kv_cache_bytes[0] == one.kv_cache_bytes


@pytest.mark.parametrize(
    ("policy", "axes", "says"),
    [
        ("fastvv", {"k": 3}, "cannot be swept"),
        ("fastv", {"k": 3}, "needs ratio"),
        ("fastv", {"k": 3, "ratio": 0.5, "z": 1}, "no parameter 'z'"),
        ("fastv", {"k": [0, 3], "ratio": 0.5}, "k must lie between 1"),
        ("fastv", {"k": [2, 3], "ratio": [0.1, 0.2, 0.3]}, "one length"),
        ("visipruner", {"filter": 5, "keep": 3, "exit": 6}, "no layer to the kept"),
        ("visipruner", {"filter": 5.5, "keep": 3, "exit": 9}, "whole layers"),
        ("prellm", {"keep": 3.5}, "must be whole"),
    ],
)
def test_bad_sweeps(policy: str, axes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        sweep(SPECS["plain"], Workload(visual_tokens=40), policy, **axes)


def test_fractions_are_refused_where_work_is_executed() -> None:
    spec, workload = SPECS["plain"], Workload(visual_tokens=40)
    schedule = parse("visipruner:filter=2.5,keep=3.5,exit=7.5").schedule(spec)
    assert cost(spec, workload, schedule, "pdrop").prefill_flops > 0
    with pytest.raises(InputError, match="cannot be executed"):
        cost(spec, workload, schedule)


def test_a_schedule_of_another_model_is_refused() -> None:
    with pytest.raises(ScheduleError, match="covers 8 layers and"):
        cost(SPECS["plain"], Workload(visual_tokens=4), dense(8))


def test_unknown_convention_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'exact'"):
        cost(SPECS["plain"], Workload(visual_tokens=4), dense(LAYERS), "exakt")


def test_latents_are_cached_and_not_what_they_expand_to() -> None:
    found = price(SPECS["latent"], Workload(visual_tokens=40, text_tokens=20, system_tokens=0), "dense")
    assert found.kv_cache_bytes == 60 * LAYERS * 2 * (16 + 4)


def test_linear_layers_hold_a_state_of_fixed_size() -> None:
    spec = SPECS["linear"]
    assert spec.decoder.modelled
    short, long = (price(spec, Workload(visual_tokens=n, text_tokens=1, system_tokens=0), "dense") for n in (9, 99))
    full = sum(layer.attention.kind == "full" for layer in spec.decoder.layers)
    assert long.kv_cache_bytes - short.kv_cache_bytes == 90 * full * 2 * 2 * 2 * 16
