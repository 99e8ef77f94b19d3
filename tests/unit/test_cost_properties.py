"""What must hold for any model, workload and policy."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import COMPONENTS, CONVENTIONS, cost, latency, sweep
from planner.cost.hardware import hardware
from planner.errors import InputError, ScheduleError
from planner.policies import FastV, Policy, PreLLM, PyramidDrop, Random, SparseVLM, VisiPruner, parse, policy_class
from planner.policies.base import REGISTRY
from planner.report.sweeps import sweep_csv
from planner.report.targets import Target
from planner.schedule import Schedule, Stage, dense
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
    "visipruner:filter=4,keep=6,visual_attention=self",
    "visipruner:filter=4,keep=6,visual_attention=prefix,text_to_visual=full",
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


@pytest.mark.parametrize("name", ["plain", "windows", "experts", "chunks"])
@pytest.mark.parametrize(("system", "visual"), [(0, 30), (5, 57), (40, 9), (11, 23)])
def test_pairs_of_visual_tokens_with_the_text_before_them(name: str, system: int, visual: int) -> None:
    """Counted one by one, against the rule under which they see only themselves and have none."""
    workload = Workload(visual_tokens=visual, text_tokens=21, system_tokens=system, batch=2)
    spec = SPECS[name] if name in SPECS else llava(model_type="llama4_text", attention_chunk_size=24, head_dim=16)
    windows = {layer.attention.window for layer in spec.decoder.layers}
    assert windows == {"windows": {0, 24}, "chunks": {0, 24}}.get(name, {0})
    for rule in ("exact", "causal"):
        flops = []
        for text in ("none", "full"):
            stage = {"first": 0, "last": spec.layers, "text_to_visual": text, "cache_visual": "none"}
            behind, alone = (
                cost(spec, workload, Schedule(stages=(Stage(**stage, visual_attention=sight),)), rule)
                for sight in ("prefix", "self")
            )
            flops.append(behind.prefill["attention_scores"] - alone.prefill["attention_scores"])
            own_keys = spec.layers * visual * spec.decoder.layers[0].attention.pair_macs
            assert behind.visual_attention - alone.visual_attention == 2 * 2 * own_keys
        macs = 0
        for layer in spec.decoder.layers:
            window, pairs = layer.attention.window, visual
            for row in range(system, system + visual):
                for key in range(system):
                    near = row // window == key // window if layer.attention.kind == "chunked" else row - key < window
                    pairs += rule == "exact" or not window or near
            macs += pairs * layer.attention.pair_macs
        assert flops == [2 * 2 * macs] * 2


def test_text_between_images_is_seen_by_later_ones() -> None:
    """Its keys meet every visual row, and a mask hides them from earlier ones."""
    one, two = (
        Workload(visual_tokens=30, text_tokens=21, system_tokens=5, between_tokens=between) for between in (0, 4)
    )
    prefix, alone = (f"visipruner:filter=4,keep=6,visual_attention={rule}" for rule in ("prefix", "self"))
    more = price(SPECS["plain"], two, prefix).prefill_flops - price(SPECS["plain"], one, prefix).prefill_flops
    assert more == 2 * 4 * 30 * 4 * SPECS["plain"].decoder.layers[0].attention.pair_macs
    assert price(SPECS["plain"], two, alone).prefill == price(SPECS["plain"], one, alone).prefill
    with pytest.raises(InputError, match=r"between_tokens \(22\) cannot exceed text_tokens \(21\)"):
        Workload.of(visual_tokens=30, text_tokens=21, between_tokens=22)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_batch_is_that_many_requests(name: str) -> None:
    one, three = (
        price(SPECS[name], Workload(visual_tokens=40, batch=batch), "fastv:k=2,ratio=0.5") for batch in (1, 3)
    )
    assert three.prefill_flops == 3 * one.prefill_flops
    assert three.kv_cache_bytes == 3 * one.kv_cache_bytes
    assert three.decode_flops_per_token == one.decode_flops_per_token


# A window forgets what a longer prefill still pairs in part, a latent is expanded again at every step, and a recurrent
# state is brought up to date by other operations in a prefill.
@pytest.mark.parametrize("name", sorted(set(SPECS) - {"windows", "latent", "linear"}))
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


#: Policies that select before the decoder.
ENTRIES = ("cdpruner", "dart", "diverse", "evs", "hired", "pool", "prellm", "vidcom2", "vispruner")
#: Policies that lay themselves out as arrays, and which of their parameters.
FAST = {
    "fastv": ("k", "ratio"),
    "random": ("k", "ratio"),
    **dict.fromkeys(ENTRIES, ("keep",)),
    "pyramiddrop": ("keep",),
    "visipruner": ("filter", "keep", "exit"),
    "visipruner:probe=true": ("filter", "keep", "exit"),
}


def test_every_fast_path_is_tested() -> None:
    fast = {name for name, policy in REGISTRY.items() if policy.layout.__func__ is not Policy.layout.__func__}  # type: ignore[attr-defined]
    fast.remove("resize")  # the cost of its vision encoder is counted one by one
    assert fast == {name.split(":")[0] for name in FAST}


@pytest.mark.parametrize("name", sorted(SPECS))
@pytest.mark.parametrize("policy", FAST)
def test_the_fast_path_of_a_sweep_is_the_scalar_path(policy: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly: every integer, and the estimated times to rounding."""
    spec, draw = SPECS[name], np.random.default_rng(3)
    workload = Workload(visual_tokens=57, text_tokens=21, system_tokens=5, batch=2, output_tokens=9)
    axes: dict[str, Any] = {}
    for key in FAST[policy]:
        shares = key == "ratio" or (key == "keep" and policy == "pyramiddrop")
        axes[key] = draw.uniform(0.01, 0.99, 25).round(3) if shares else draw.integers(*RANGES[key], 25, endpoint=True)
    if policy in ENTRIES:
        axes["keep"] = axes["keep"] + (axes["keep"] == 1)  # which is everything, and not laid out
    device = hardware("l4")
    spelled, fixed = f"{policy}{',' if ':' in policy else ':'}", {"probe": True} if "probe" in policy else {}
    monkeypatch.setattr("planner.cost.sweeping._each", lambda *_: pytest.fail("not the fast path"))
    for rule in ("exact", "causal"):
        found = sweep(spec, workload, policy_class(policy.split(":")[0]), rule, device, **axes, **fixed)
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


@pytest.mark.parametrize(
    ("policy", "axes"),
    [
        (FastV, {"k": [2, 3, 3], "ratio": [0.0, 0.5, 1.0]}),
        (Random, {"ratio": [0.25, 0.5, 0.999]}),
        (PreLLM, {"keep": [0.01, 0.5, 7]}),
        (PyramidDrop, {"keep": [0.01, 0.5, 1]}),
        (VisiPruner, {"filter": [0, 3, 5], "keep": [1, 0.5, 10**6]}),
    ],
)
@pytest.mark.parametrize("visual", [0, 1, 57])
def test_defaults_and_edges_of_the_fast_path(
    policy: type[Policy], axes: dict[str, Any], visual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Workload(visual_tokens=visual, text_tokens=21)
    fast = sweep(SPECS["plain"], request, policy, **axes)
    monkeypatch.setattr(policy, "layout", Policy.layout)
    slow = sweep(SPECS["plain"], request, policy, **axes)
    for figure in ("prefill_flops", "visual_attention", "decode_flops_per_token", "kv_cache_bytes"):
        assert getattr(fast, figure).tolist() == getattr(slow, figure).tolist()
        assert getattr(fast, figure).dtype == getattr(slow, figure).dtype == np.int64


@pytest.mark.parametrize("spelled", POLICIES_SEEN)
@pytest.mark.parametrize("rule", ["exact", "pdrop"])
def test_every_policy_and_composition_can_be_swept(spelled: str, rule: str) -> None:
    spec, workload = SPECS["plain"], Workload(visual_tokens=57, text_tokens=21, system_tokens=5, batch=2)
    target = Target("plain", spec)
    header, line = sweep_csv(target, workload, spelled, rule).splitlines()
    row = dict(zip(header.split(","), line.split(","), strict=True))
    assert float(row["prefill_flops"]) == price(spec, workload, spelled, rule).prefill_flops
    assert row["policy"] == "+".join(part.split(":")[0] for part in spelled.split("+"))


def test_compositions_are_swept_over_the_parameters_of_all_their_parts() -> None:
    spec, workload = SPECS["plain"], Workload(visual_tokens=40)
    text = sweep_csv(Target("plain", spec), workload, "prellm:keep=0.25/0.5+visipruner:filter=2..3,keep=4", "exact")
    rows = list(csv.DictReader(io.StringIO(text)))
    order = [("0.25", "2"), ("0.25", "3"), ("0.5", "2"), ("0.5", "3")]
    assert [(row["prellm.keep"], row["visipruner.filter"]) for row in rows] == order
    for row, (keep, first) in zip(rows, order, strict=True):
        one = price(spec, workload, f"prellm:keep={keep}+visipruner:filter={first},keep=4")
        assert int(row["prefill_flops"]) == one.prefill_flops


def test_a_sweep_beyond_64_bits_stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec.from_config("llava-1.5-13b")
    workload = Workload(visual_tokens=1 << 20, batch=1 << 10, text_tokens=100)
    one = price(spec, workload, "fastv:k=3,ratio=0.5")
    assert one.prefill_flops > 1 << 64
    for _ in range(2):
        found = sweep(spec, workload, FastV, k=[3], ratio=[0.5])
        assert found.prefill_flops[0] == one.prefill_flops
        assert found.kv_cache_bytes[0] == one.kv_cache_bytes
        monkeypatch.setattr(FastV, "layout", Policy.layout)


def test_integers_between_63_and_64_bits_stay_integers() -> None:
    """NumPy would take unsigned ones, and floats once these meet signed ones of another chunk."""
    workload = Workload(visual_tokens=576, batch=1 << 16, text_tokens=5000)
    spec = ModelSpec.from_config("llava-1.5-13b")
    one = price(spec, workload, "sparsevlm")
    assert 1 << 63 < one.prefill_flops < 1 << 64
    assert sweep(spec, workload, SparseVLM).prefill_flops.tolist() == [one.prefill_flops]
    assert sweep(spec, workload, SparseVLM).prefill_flops.dtype == object


@pytest.mark.parametrize(
    ("policy", "axes", "says"),
    [
        (FastV, {"k": 3, "ratio": 0.5, "z": 1}, "no key 'z'"),
        (FastV, {"k": [0, 3], "ratio": 0.5}, "no attention to rank by"),
        (FastV, {"k": [3, LAYERS], "ratio": 0.5}, "outside the model's layers"),
        (FastV, {"k": [2, 3], "ratio": [0.1, 0.2, 0.3]}, "one length"),
        (FastV, {"k": []}, "nothing"),
        (VisiPruner, {"keep": 3}, "filter: Field required"),
        (VisiPruner, {"filter": 5, "keep": 3, "exit": 6}, "no layer to the kept"),
        (VisiPruner, {"filter": 5.5, "keep": 3, "exit": 9}, "cannot be executed"),
        (PreLLM, {"keep": 3.5}, "cannot be executed"),
    ],
)
def test_bad_sweeps(policy: type[Policy], axes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        sweep(SPECS["plain"], Workload(visual_tokens=40), policy, **axes)


def test_a_paper_s_convention_has_no_times() -> None:
    with pytest.raises(InputError, match="not what a device executes"):
        sweep(SPECS["plain"], Workload(visual_tokens=40), FastV, "pdrop", hardware("l4"))


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
    assert not spec.decoder.modelled
    short, long = (price(spec, Workload(visual_tokens=n, text_tokens=1, system_tokens=0), "dense") for n in (9, 99))
    full = sum(layer.attention.kind == "full" for layer in spec.decoder.layers)
    assert long.kv_cache_bytes - short.kv_cache_bytes == 90 * full * 2 * 2 * 2 * 16
