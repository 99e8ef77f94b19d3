"""Roofline estimates, by hand; hardware rows, shipped and a user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.cost import cost, latency
from planner.cost.constants import Constants
from planner.cost.engine import ENGINES, absorbed, engine
from planner.cost.hardware import Hardware, hardware, shipped_row, shipped_rows
from planner.cost.memory import reached_experts
from planner.cost.vision import vision_flops
from planner.errors import InputError
from planner.policies import parse
from planner.schedule import dense
from planner.spec import ModelSpec
from planner.workload import Workload
from tests import tiny

SPEC = ModelSpec.from_config("llava-1.5-7b")
PROMPT = Workload(visual_tokens=576, output_tokens=1)
CONSTANTS = Constants(matmul=1, attention=1, memory=1, elementwise=1)


def device(asynchronous: bool = True, **constants: Any) -> Hardware:
    """A device that reaches its peaks, except as given."""
    return Hardware(
        name="ideal", peak_tflops=100, bandwidth_gbs=1000, memory_gb=80, source="a test",
        asynchronous=asynchronous, measured=CONSTANTS.model_copy(update=constants),
    )  # fmt: skip


IDEAL = device()


def estimate(workload: Workload = PROMPT, device: Hardware = IDEAL, policy: str = "dense") -> Any:
    return latency(cost(SPEC, workload, parse(policy).schedule(SPEC), "causal"), device)


def test_prefill_by_hand() -> None:
    """A long prompt is bound by compute: milliseconds are FLOPs over 1e11, class by class."""
    found = cost(SPEC, PROMPT, dense(32), "causal")
    time = latency(found, IDEAL)
    assert time.prefill_ms_by_class["ffn"] == pytest.approx(found.prefill["ffn"] / 1e11)
    assert time.prefill_ms_by_class["attention_projections"] == pytest.approx(
        found.prefill["attention_projections"] / 1e11
    )
    assert time.prefill_bound == "compute"
    assert time.prefill_ms == pytest.approx(sum(time.prefill_ms_by_class.values()))


def test_decode_by_hand() -> None:
    """A step of one request reads every weight and the cache once: bytes over 1e9."""
    time = estimate()
    d, m = 4096, 11008
    assert time.decode_ms_by_class["attention_projections"] == pytest.approx(32 * 4 * d * d * 2 / 1e9)
    assert time.decode_ms_by_class["ffn"] == pytest.approx(32 * 3 * d * m * 2 / 1e9)
    assert time.decode_ms_by_class["attention_scores"] == pytest.approx(650 * 524_288 / 1e9)
    assert time.decode_bound == "memory"


def test_a_large_batch_is_bound_by_compute_in_decoding_too() -> None:
    assert (
        estimate(PROMPT.model_copy(update={"batch": 512, "text_tokens": 1, "visual_tokens": 1})).decode_bound
        == "compute"
    )


def test_weights_of_fewer_bits_are_read_faster() -> None:
    full, quarter = estimate(), estimate(PROMPT.model_copy(update={"weight_bits": 4}))
    assert quarter.decode_ms_by_class["ffn"] == pytest.approx(full.decode_ms_by_class["ffn"] / 4)


def test_layers_read_their_weights_however_few_rows_they_run() -> None:
    """A plan that drops the image after one layer of 32 pays 31 times for reading a layer's weights."""
    time = estimate(policy="fastv:k=1,ratio=1", workload=PROMPT.model_copy(update={"text_tokens": 2}))
    d, m = 4096, 11008
    reading = 3 * d * m * 2 / 1e9
    computing = 2 * (10 + 576 + 2) * 3 * d * m / 1e11
    assert computing > reading > 2 * 12 * 3 * d * m / 1e11
    assert time.prefill_ms_by_class["ffn"] == pytest.approx(computing + 31 * reading)


def test_computing_and_reading_one_after_the_other() -> None:
    """Without overlap a class takes the sum; with half of it, half the shorter is hidden."""
    longer, both, half = (estimate(device=device(overlap=share)) for share in (1, 0, 0.5))
    d, m = 4096, 11008
    reading = 32 * 3 * d * m * 2 / 1e9
    assert both.prefill_ms_by_class["ffn"] == pytest.approx(longer.prefill_ms_by_class["ffn"] + reading)
    assert half.prefill_ms_by_class["ffn"] == pytest.approx(longer.prefill_ms_by_class["ffn"] + reading / 2)


def test_isolated_rows_read_the_weights_again() -> None:
    """Layers in which visual rows run apart from the text read value, output and feed-forward weights twice."""
    slow = device(overlap=0)
    one, many = (estimate(device=slow, policy=f"visipruner:filter={layers},keep=10,exit=24") for layers in (4, 5))
    found = {name: cost(SPEC, PROMPT, parse(f"visipruner:filter={n},keep=10,exit=24").schedule(SPEC), "causal")
             for name, n in (("one", 4), ("many", 5))}  # fmt: skip
    added = (found["many"].prefill["ffn"] - found["one"].prefill["ffn"]) / 1e11 + 3 * 4096 * 11008 * 2 / 1e9
    assert many.prefill_ms_by_class["ffn"] - one.prefill_ms_by_class["ffn"] == pytest.approx(added)


def test_elementwise_work_by_hand() -> None:
    """Norms and residuals touch 10 d elements a row, rotary embedding 10 of each query and key, the gate 5 m."""
    time = estimate()
    d, m = 4096, 11008
    touched = 10 * d + 10 * 2 * d + 5 * m
    assert time.prefill_ms_by_class["elementwise"] == pytest.approx(32 * 650 * touched * 2 / 1e9)


def test_total_is_the_answer() -> None:
    time = estimate(PROMPT.model_copy(update={"output_tokens": 5}))
    assert time.total_ms == pytest.approx(time.prefill_ms + 4 * time.decode_ms)
    assert time.estimate


def test_overhead_counts_where_the_device_waits_for_it() -> None:
    """On a CPU it adds; beside a GPU the longer of the two counts, for the tower and for the decoder."""
    none = estimate(device=device(asynchronous=False))
    slow = {"layer_us": 1000, "tower_layer_us": 10, "step_us": 500}
    cpu = estimate(device=device(asynchronous=False, **slow))
    assert cpu.prefill_ms == pytest.approx(none.prefill_ms + 32.5 + 0.24)
    gpu = estimate(device=device(asynchronous=True, **slow))
    assert none.prefill_ms - none.vision_ms > 32.5, "the device is the slower one"
    assert gpu.prefill_ms == pytest.approx(none.prefill_ms)
    assert gpu.decode_ms == pytest.approx(32.5), "and here the host"
    assert gpu.decode_bound == "overhead"


def test_an_engine_s_constants_give_way_to_measured_ones() -> None:
    found = cost(SPEC, PROMPT, dense(32), "causal")
    times = [latency(found, shipped_row("h100-sxm").model_copy(update={"engine": name})).prefill_ms for name in ENGINES]
    assert sorted(times, reverse=True) == times, "hf, vllm, ideal"
    same = {latency(found, IDEAL.model_copy(update={"engine": name})).prefill_ms for name in ENGINES}
    assert len(same) == 1


def test_a_step_reads_the_experts_it_is_expected_to_reach() -> None:
    """Two rows with 4 of 64 experts each: 64 (1 - (60/64)^2) = 7.75."""
    fields = {"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "num_hidden_layers": 3}
    spec = ModelSpec.from_config({"model_type": "qwen3_moe", "hidden_size": 48, **fields})
    ffn = spec.decoder.layers[0].ffn
    assert reached_experts(ffn, 1) == pytest.approx(4)
    assert reached_experts(ffn, 2) == pytest.approx(7.75)
    request = Workload(visual_tokens=0, system_tokens=0, text_tokens=2)
    time = latency(cost(spec, request, dense(3), "causal"), IDEAL)
    read = 3 * (48 * 64 + 7.75 * 3 * 48 * 32) * 2
    assert time.prefill_ms_by_class["ffn"] == pytest.approx(read / 1e9)


def test_a_serving_engine_runs_routed_experts_only() -> None:
    """Llama 4 in transformers computes all 16 experts of a token and masks 15."""
    spec = ModelSpec.from_config(tiny.config("llama4").to_dict())
    served = engine("vllm").executed(spec)
    ffn, routed = (of.decoder.layers[-1].ffn for of in (spec, served))
    assert (ffn.experts_run, ffn.routed) == (ffn.experts, 1)
    assert routed.experts_run == 1
    assert engine("hf").executed(spec) is spec
    found = cost(spec, Workload(visual_tokens=64, batch=512), dense(spec.layers), "causal")
    vllm = IDEAL.model_copy(update={"engine": "vllm"})
    every, one = (latency(found, row).prefill_ms_by_class["ffn"] for row in (IDEAL, vllm))
    assert one < every


def test_absorbed_latent_attention() -> None:
    """DeepSeek-V3: 128 heads meet latents of 512, and 64 rotary elements in the scores; nothing is expanded anew."""
    config = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 1, "num_attention_heads": 128,
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": 1536,
        "intermediate_size": 18432, "vocab_size": 129280, "first_k_dense_replace": 1, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
    }  # fmt: skip
    layer = ModelSpec.from_config(config).decoder.layers[0]
    found = absorbed(layer).attention
    assert found.pair_macs == 128 * (576 + 512)
    assert found.projection_macs == layer.attention.projection_macs
    assert found.expand_macs == 0
    dense_layer = SPEC.decoder.layers[0]
    assert absorbed(dense_layer) == dense_layer


def test_a_serving_engine_lets_images_attend_alone() -> None:
    """Pixtral towers in transformers attend over all images of a batch and mask; eight requests are eight times one."""
    spec = ModelSpec.from_config(tiny.config("mistral3").to_dict())
    served = engine("vllm").executed(spec)
    sizes = ((64, 64),)
    one, eight = (vision_flops(served, sizes, 0, batch, False)[0] for batch in (1, 8))
    assert eight == 8 * one < vision_flops(spec, sizes, 0, 8, False)[0]


def test_shipped_rows_state_a_source_and_raise_no_doubt() -> None:
    assert len(shipped_rows()) == 24
    for name in shipped_rows():
        row = hardware(name)
        assert row.source and not row.doubts, name


def test_a_user_s_row(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    row = {"name": "My H100 SXM", "peak_tflops": 1979, "bandwidth_gbs": 3350, "memory_gb": 80, "source": "a sheet"}
    path.write_text(json.dumps(row))
    found = hardware(path)
    assert found.peak_tflops == 1979
    assert "with sparsity" in found.doubts[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peak_tflops": -1}, "peak_tflops"),
        ({"bandwidth_gbs": 0}, "bandwidth_gbs"),
        ({"colour": "red"}, "colour"),
        ({"source": None}, "source"),
        ({"measured": {"matmul": 1.5}}, "measured.matmul"),
    ],
)
def test_bad_rows(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    row = {"name": "x", "peak_tflops": 1, "bandwidth_gbs": 1, "memory_gb": 1, "source": "s", **change}
    path = tmp_path / "row.json"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=says):
        hardware(path)


def test_unknown_row_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'h100-sxm'"):
        hardware("h100-sx")
