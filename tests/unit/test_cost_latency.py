"""Roofline estimates, by hand; hardware rows, shipped and a user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.cost import cost, latency
from planner.cost.hardware import Efficiency, Hardware, hardware, shipped_row, shipped_rows
from planner.cost.roofline import weight_bytes, weights_stored
from planner.errors import InputError
from planner.policies import parse
from planner.schedule import dense
from planner.spec import ModelSpec
from planner.workload import Workload

SPEC = ModelSpec.from_config("llava-1.5-7b")
PROMPT = Workload(visual_tokens=576, output_tokens=1)
IDEAL = Hardware(
    name="ideal", peak_tflops=100, bandwidth_gbs=1000, memory_gb=80, source="a test",
    efficiency=Efficiency(matmul=1, attention=1, memory=1),
)  # fmt: skip


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


def test_pruning_saves_prefill_time_and_hardly_a_small_batch_s_decode_time() -> None:
    whole, planned = estimate(), estimate(policy="visipruner:filter=8,keep=10,exit=24")
    assert planned.prefill_ms < 0.5 * whole.prefill_ms
    assert 0.97 * whole.decode_ms < planned.decode_ms < whole.decode_ms


def test_total_is_the_answer() -> None:
    time = estimate(PROMPT.model_copy(update={"output_tokens": 5}))
    assert time.total_ms == pytest.approx(time.prefill_ms + 4 * time.decode_ms)
    assert time.estimate


def test_overhead_is_per_layer() -> None:
    slow = IDEAL.model_copy(update={"overhead_us": 10})
    assert estimate(device=slow).prefill_ms - estimate().prefill_ms == pytest.approx(0.32)


def test_memory() -> None:
    time = estimate()
    assert time.memory_bytes == sum(weights_stored(SPEC, PROMPT).values()) + 650 * 524_288
    assert time.fits
    assert not estimate(device=shipped_row("t4").model_copy(update={"memory_gb": 12})).fits


def test_a_step_reads_only_the_experts_it_reaches() -> None:
    fields = {"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "num_hidden_layers": 3}
    spec = ModelSpec.from_config({"model_type": "qwen3_moe", "hidden_size": 48, **fields})
    stored = weights_stored(spec, PROMPT)["ffn"]
    expert = 2 * 3 * 48 * 32
    assert weight_bytes(spec, PROMPT, tokens=2)["ffn"] == stored - 3 * (64 - 8) * expert
    assert weight_bytes(spec, PROMPT, tokens=1000)["ffn"] == stored


def test_shipped_rows_state_a_source_and_raise_no_doubt() -> None:
    assert len(shipped_rows()) == 12
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
        ({"efficiency": {"matmul": 1.5}}, "efficiency.matmul"),
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
