"""Figures printed elsewhere or derived by hand: the cost model must land on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.cost import cost, sweep
from planner.policies import FastV, VisiPruner, parse
from planner.schedule import dense
from planner.spec import ModelSpec
from planner.spec.images import encode
from planner.workload import Workload

PROMPT = Workload(visual_tokens=576, system_tokens=10, text_tokens=64)


def price(
    model: str, policy: str = "dense", convention: str = "exact", workload: Workload = PROMPT, **options: Any
) -> Any:
    spec = ModelSpec.from_config(model)
    return cost(spec, workload, parse(policy).schedule(spec, workload), convention, **options)


def test_llava_7b_exact() -> None:
    found = price("llava-1.5-7b")
    vision = found.prefill["vision"] + found.prefill["projector"]
    assert found.prefill_flops == 9_046_658_744_320
    assert vision == 406_077_407_232
    assert found.prefill_flops - vision == 8_640_581_337_088
    assert found.decode_flops_per_token == 13_555_990_528


def test_llava_7b_by_hand() -> None:
    """The decoder from its shapes: 650 tokens, 32 layers, d 4096, m 11008, V 32064."""
    n, d, m = 650, 4096, 11008
    found = price("llava-1.5-7b").prefill
    assert found["attention_projections"] == 32 * 2 * n * 4 * d * d
    assert found["attention_scores"] == 32 * 2 * 2 * n * n * d
    assert found["ffn"] == 32 * 2 * n * 3 * d * m
    assert found["lm_head"] == 2 * d * 32064
    assert found["selector"] == 0


def test_llava_7b_causal() -> None:
    assert price("llava-1.5-7b", convention="causal").prefill_flops == 8_936_073_297_920


def test_small_llava_with_the_head_on_all_positions() -> None:
    config = {
        "model_type": "llava",
        "image_token_index": 31999,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "intermediate_size": 1408,
            "vocab_size": 32000,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "intermediate_size": 1024,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
        },
    }
    spec = ModelSpec.from_config(config)
    assert cost(spec, PROMPT, dense(8), head="all").prefill_flops == 63_149_379_584


@pytest.mark.parametrize(
    ("model", "per_token"),
    [("llava-1.5-7b", 524_288), ("llava-1.5-13b", 819_200), ("qwen2-vl-7b", 57_344), ("internvl2.5-8b", 131_072)],
)
def test_cache_bytes_per_token(model: str, per_token: int) -> None:
    found = price(model)
    assert found.kv_cache_bytes == 650 * per_token
    assert found.kv_cache_bytes_after(1) - found.kv_cache_bytes == per_token


@pytest.mark.parametrize(("bits", "share"), [(8, 0.5), (4, 0.25)])
def test_cache_bytes_follow_the_element_size(bits: int, share: float) -> None:
    assert price("llava-1.5-7b", workload=PROMPT.model_copy(update={"kv_bits": bits})).kv_cache_bytes == int(
        share * 650 * 524_288
    )


@pytest.mark.parametrize(
    ("policy", "convention", "expected", "printed_to"),
    [
        ("dense", "pdrop", 3.817e12, 5e8),
        ("pyramiddrop:layers=8/16/24,keep=0.5", "pdrop", 1.777e12, 5e8),
        ("visipruner:filter=14.94,keep=10.3,exit=23.9,visual_attention=self", "pdrop", 1.76e12, 5e9),
        ("dense", "fastv", 99.33e9, 5e6),
    ],
)
def test_papers_llava_7b(policy: str, convention: str, expected: float, printed_to: float) -> None:
    assert price("llava-1.5-7b", policy, convention).prefill_flops == pytest.approx(expected, abs=printed_to)


@pytest.mark.parametrize(("tokens", "printed"), [(2880, 41.7e12), (320, 4.2e12)])
def test_cdpruner_counts_two_for_a_multiply_add(tokens: int, printed: float) -> None:
    """LLaVA-NeXT-7B in its efficiency table, to the digit that is printed."""
    found = price("llava-next-7b", convention="cdpruner", workload=PROMPT.model_copy(update={"visual_tokens": tokens}))
    assert found.prefill_flops == pytest.approx(printed, abs=5e10)


def test_visipruner_saves_what_its_paper_says() -> None:
    planned = price("llava-1.5-7b", "visipruner:filter=14.94,keep=10.3,exit=23.9,visual_attention=self", "pdrop")
    assert planned.prefill_flops / price("llava-1.5-7b", convention="pdrop").prefill_flops - 1 == pytest.approx(
        -0.539, abs=5e-4
    )


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("dense", 154.6e9),
        ("fastv:k=2,ratio=0.5", 84.6e9),
        ("fastv:k=2,ratio=0.75", 50.2e9),
        ("fastv:k=2,ratio=0.9", 29.7e9),
    ],
)
def test_fastv_13b_per_layer(policy: str, expected: float) -> None:
    assert price("llava-1.5-13b", policy, "fastv").prefill_flops == pytest.approx(expected, abs=5e7)


def test_fastv_convention_is_its_rule_by_hand() -> None:
    """``(K f(612) + (T - K) f(612 - R 576)) / T`` with ``f(n) = 4nd^2 + 2n^2d + 2ndm``."""
    d, m = 4096, 11008

    def layer(n: float) -> float:
        return 4 * n * d * d + 2 * n * n * d + 2 * n * d * m

    expected = (3 * layer(612) + 29 * layer(612 - 0.75 * 576)) / 32
    found = price("llava-1.5-7b", "fastv:k=3,ratio=0.75", "fastv", PROMPT.model_copy(update={"system_tokens": 3}))
    assert found.prefill_flops == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("retained", "change"), [(192, -0.864), (64, -0.976)])
def test_mean_token_attention(retained: int, change: float) -> None:
    found = price("llava-1.5-7b", f"prellm:keep={retained}", "mean-token")
    whole = price("llava-1.5-7b", convention="mean-token")
    assert found.visual_attention / whole.visual_attention - 1 == pytest.approx(change, abs=5e-4)


def test_mean_token_biases_attention() -> None:
    """FastV K=3 R=75 %: -87.3 % from the mean token count, -83.0 % summed by layer."""
    policy = "fastv:k=3,ratio=0.75"
    for convention, change in (("mean-token", -0.873), ("exact", -0.830)):
        ratio = (
            price("llava-1.5-7b", policy, convention).visual_attention
            / price("llava-1.5-7b", convention=convention).visual_attention
        )
        assert ratio - 1 == pytest.approx(change, abs=5e-4), convention


@pytest.mark.parametrize(
    ("height", "width", "tokens"), [(336, 336, 1176), (672, 672, 2928), (480, 640, 2340), (1080, 1920, 1948)]
)
def test_llava_next_tokens(height: int, width: int, tokens: int) -> None:
    config = {
        "model_type": "llava_next",
        "image_token_index": 32000,
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
    }
    assert encode(ModelSpec.from_config(config), width, height).visual_tokens == tokens


def test_qwen2_vl_tokens() -> None:
    assert encode(ModelSpec.from_config("qwen2-vl-7b"), 640, 480).visual_tokens == 391


@pytest.mark.parametrize("rule", ["self", "prefix"])
def test_visipruner_by_hand(rule: str) -> None:
    """Stage by stage, from shapes: 3 layers isolated, a filtering layer, 2 on kept tokens, the rest without any.

    Rows that see the text before them have queries and keys too, and a pair with each of it and with themselves.
    """
    found = price("llava-1.5-7b", f"visipruner:filter=3,keep=10,exit=6,visual_attention={rule}")
    d, m, words, visual, kept = 4096, 11008, 74, 576, 10

    def layer(rows: int) -> int:
        return 2 * (4 * rows * d * d + 2 * rows * rows * d + 3 * rows * d * m)

    alone = 2 * visual * (2 * d * d + 3 * d * m)
    if rule == "prefix":
        alone += 2 * visual * (2 * d * d + 2 * d * (PROMPT.system_tokens + 1))
    expected = 3 * (layer(words) + alone) + layer(words + visual) + 2 * layer(words + kept) + 26 * layer(words)
    decoder = found.prefill_flops - found.prefill["vision"] - found.prefill["projector"] - found.prefill["lm_head"]
    assert found.prefill["selector"] == 2 * d * (words + visual)
    assert decoder - found.prefill["selector"] == expected
    assert found.kv_cache_bytes == 2 * 2 * d * (32 * words + 3 * kept)
    assert found.visual_tokens_per_layer == (576,) * 4 + (10,) * 2 + (0,) * 26


def test_generic_form_adds_queries_keys_and_one_pair() -> None:
    policy = "visipruner:filter=3,keep=10,exit=6,visual_attention=self"
    fast, generic = (price("llava-1.5-7b", policy, alone=a) for a in ("fast", "generic"))
    d = 4096
    assert generic.prefill_flops - fast.prefill_flops == 3 * 576 * (2 * 2 * d * d + 2 * 2 * d)


def test_cached_image_stream_leaves_the_text() -> None:
    """A second question on the image: no tower, no projector, nothing for visual rows of the shallow layers."""
    policy = "visipruner:filter=3,keep=10,exit=6,visual_attention=self"
    first = price("llava-1.5-7b", policy)
    second = price("llava-1.5-7b", policy, workload=PROMPT.model_copy(update={"image_stream_cached": True}))
    d, m = 4096, 11008
    alone = 3 * 2 * 576 * (2 * d * d + 3 * d * m)
    assert first.prefill_flops - second.prefill_flops == 406_077_407_232 + alone
    assert first.kv_cache_bytes == second.kv_cache_bytes


def test_a_probe_pays_its_projections_and_saves_the_layer() -> None:
    """Keys and values of all rows and one query at the filtering layer, in place of the dense layer."""
    probed = price("llava-1.5-7b", "visipruner:filter=3,keep=10,exit=6,probe=true")
    d, rows = 4096, 650
    assert probed.prefill["selector"] == 2 * (2 * rows * d * d + d * d + d * rows)
    assert probed.visual_tokens_per_layer[3] == 10
    assert probed.prefill_flops < price("llava-1.5-7b", "visipruner:filter=3,keep=10,exit=6").prefill_flops


@pytest.mark.parametrize("policy", ["dense", "fastv:k=2,ratio=0.75", "visipruner:filter=0,keep=10,exit=24"])
def test_a_plan_without_an_image_stream_pays_for_the_encoder_at_every_question(policy):
    again = PROMPT.model_copy(update={"image_stream_cached": True})
    first, second = price("llava-1.5-7b", policy, workload=PROMPT), price("llava-1.5-7b", policy, workload=again)
    assert second.prefill == first.prefill and first.prefill["vision"] > 0


@pytest.mark.parametrize(("layers", "streamed"), [(2, False), (3, True)])
def test_an_image_stream_holds_all_layers_that_deepstack_adds_to(layers, streamed):
    spec = ModelSpec.from_config("llava-1.5-7b")
    spec = replace(spec, decoder=replace(spec.decoder, deepstack=3))
    again = PROMPT.model_copy(update={"image_stream_cached": True})
    schedule = parse(f"visipruner:filter={layers},keep=10,exit=24").schedule(spec)
    assert (cost(spec, again, schedule).prefill["vision"] == 0) is streamed


def test_a_sweep_over_cached_image_streams_leaves_plans_without_one_out():
    again = PROMPT.model_copy(update={"image_stream_cached": True})
    spec = ModelSpec.from_config("llava-1.5-7b")
    found = sweep(spec, again, VisiPruner, filter=[1, 8], keep=10, exit=24)
    expected = [price("llava-1.5-7b", f"visipruner:filter={f},keep=10,exit=24", workload=again) for f in (1, 8)]
    assert list(found.prefill_flops) == [one.prefill_flops for one in expected]
    one, other = sweep(spec, again, VisiPruner, filter=[0, 8], keep=10, exit=24).prefill_flops
    assert one == price("llava-1.5-7b", "visipruner:filter=0,keep=10,exit=24", workload=PROMPT).prefill_flops
    assert other == expected[1].prefill_flops
    assert list(sweep(spec, again, FastV, k=2, ratio=0.5).prefill_flops) == [
        price("llava-1.5-7b", "fastv:k=2,ratio=0.5", workload=PROMPT).prefill_flops
    ]
