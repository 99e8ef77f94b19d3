"""Does it fit: bytes by hand, published sizes, quantised checkpoints, several devices."""

from __future__ import annotations

import json

import pytest

from planner.cost import cost, latency
from planner.cost.hardware import Hardware, shipped_row
from planner.cost.memory import activation_bytes, device_weights, memory, weights_stored
from planner.cost.parallel import Parallel
from planner.errors import InputError, UnsupportedModelError
from planner.schedule import dense
from planner.spec import ModelSpec, shipped_model
from planner.workload import Workload

SPEC = ModelSpec.from_config("llava-1.5-7b")
PROMPT = Workload(visual_tokens=576, output_tokens=1)
MOE = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 4, "vocab_size": 100, "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "intermediate_size": 32,
}  # fmt: skip


def config(**more):
    return {**shipped_model("llava-1.5-7b")["config"], **more}


def test_published_sizes():
    """Qwen2.5-VL-7B has 8.292 B parameters; Qwen3-VL-8B 8.77 B: within 0.5 %, biases and norms left out."""
    spec = ModelSpec.from_config("qwen3-vl-8b")
    assert sum(weights_stored(spec, PROMPT).values()) / 2 == pytest.approx(8.767e9, rel=5e-3)


def test_a_tied_head_is_stored_once():
    head = 2 * 4096 * 32064
    untied, tied = (sum(weights_stored(ModelSpec.from_config(values), PROMPT).values())
                    for values in (config(), config(tie_word_embeddings=True)))  # fmt: skip
    assert untied - tied == head
    gemma = ModelSpec.from_config({"model_type": "gemma"})
    assert weights_stored(gemma, PROMPT)["embedding"] == 0, "its default"


def test_storage_does_not_tell_computations_apart():
    assert ModelSpec.from_config(config(tie_word_embeddings=True)).digest == SPEC.digest


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4.126953125),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 64}}},
            },
            4 + 16 / 64,
        ),
    ],
)
def test_quantised_layers(quantization, bits):
    """Layers in their bits, scales included; tower, projector, embedding and head as ever."""
    spec = ModelSpec.from_config(config(quantization_config=quantization))
    stored, whole = weights_stored(spec, PROMPT), weights_stored(SPEC, PROMPT)
    assert stored["ffn"] == pytest.approx(whole["ffn"] * bits / 16)
    assert {name: stored[name] for name in ("vision", "embedding", "lm_head")} == {
        name: whole[name] for name in ("vision", "embedding", "lm_head")
    }
    device = shipped_row("h100-sxm")
    slow, fast = (latency(cost(one, PROMPT, dense(32), "causal"), device.model_copy(update={"engine": "ideal"}))
                  for one in (SPEC, spec))  # fmt: skip
    assert fast.decode_ms_by_class["ffn"] == pytest.approx(slow.decode_ms_by_class["ffn"] * bits / 16)


def test_an_unknown_quantisation_has_flops_and_no_bytes():
    spec = ModelSpec.from_config(config(quantization_config={"quant_method": "modelopt", "quant_algo": "MIXED"}))
    found = cost(spec, PROMPT, dense(32), "causal")
    assert found.prefill_flops == cost(SPEC, PROMPT, dense(32), "causal").prefill_flops
    with pytest.raises(UnsupportedModelError, match=r"modelopt MIXED.*weight-bits"):
        latency(found, shipped_row("h100-sxm"))
    told = PROMPT.model_copy(update={"weight_bits": 8})
    assert weights_stored(spec, told) == weights_stored(SPEC, told)


def test_activations_by_hand():
    """650 rows of LLaVA-1.5-7B: stream and norm, gate, up and product; logits in 16 and 32 bits."""
    found = cost(SPEC, PROMPT, dense(32))
    layer = 650 * (2 * 4096 + 3 * 11008) * 2
    assert activation_bytes(found) == layer + 32064 * 6
    eager = 650 * (2 * 4096 + 3 * 11008) * 2 + 32 * 650 * 650 * 8
    assert activation_bytes(found, eager=True) == eager + 32064 * 6


def test_peaks_measured_on_a_gpu():
    """`reports/benchmark-gpu.md`: 0.38 GiB beside the weights at batch 1, 3.06 at batch 8, cache included."""
    for batch, measured in ((1, 0.38), (8, 3.06)):
        request = PROMPT.model_copy(update={"batch": batch, "output_tokens": 32})
        found = memory(cost(SPEC, request, dense(32)), shipped_row("h100-sxm"))
        assert (found.kv_cache + found.activations) / 2**30 == pytest.approx(measured, rel=0.1)


def test_the_largest_batch_fits_and_one_more_does_not():
    device = shipped_row("l4")
    most = memory(cost(SPEC, PROMPT, dense(32)), device).largest_batch
    assert most > 1
    for batch, fits in ((most, True), (most + 1, False)):
        request = PROMPT.model_copy(update={"batch": batch})
        assert memory(cost(SPEC, request, dense(32)), device).fits is fits


def test_two_devices_hold_half_each():
    whole = device_weights(SPEC, PROMPT, Parallel())
    assert whole == sum(weights_stored(SPEC, PROMPT).values())
    assert device_weights(SPEC, PROMPT, Parallel(tp=2)) == pytest.approx(whole / 2)
    layers = sum(weights_stored(SPEC, PROMPT)[name] for name in ("attention_projections", "ffn"))
    assert device_weights(SPEC, PROMPT, Parallel(pp=2)) == pytest.approx(whole - layers / 2)


def test_experts_are_shared():
    spec = ModelSpec.from_config(MOE)
    request = Workload(visual_tokens=0)
    experts = weights_stored(spec, request)["experts"]
    assert experts == 2 * 8 * 3 * 64 * 32 * 2
    rest = sum(weights_stored(spec, request).values()) - experts
    assert device_weights(spec, request, Parallel(ep=4)) == pytest.approx(rest + experts / 4)


def test_latents_are_on_every_device():
    """Two devices halve the cache of heads, not that of latents, which all heads share."""
    latent = ModelSpec.from_config(
        {
            "model_type": "deepseek_v3", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
            "v_head_dim": 8, "q_lora_rank": 16, "intermediate_size": 64, "vocab_size": 100,
            "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "n_shared_experts": 1,
        }
    )  # fmt: skip
    request = Workload(visual_tokens=0)
    for spec, share in ((latent, 1), (SPEC, 2)):
        found = cost(spec, request, dense(spec.layers))
        one, two = (memory(found, device(link_gbs=1, parallel=Parallel(tp=tp))) for tp in (1, 2))
        assert one.kv_cache == share * two.kv_cache


def device(**fields):
    measured = {"matmul": 1, "attention": 1, "memory": 1, "elementwise": 1}
    return Hardware(
        name="d", peak_tflops=100, bandwidth_gbs=1000, memory_gb=80, source="a test", measured=measured, **fields
    )


def test_communication_by_hand():
    """Two sums a layer over a ring of four: each sends 2 * 3/4 of 650 hidden states, and waits six starts of 10 us."""
    found = cost(SPEC, PROMPT, dense(32), "causal")
    one, four = (latency(found, device(link_gbs=100, parallel=Parallel(tp=tp))) for tp in (1, 4))
    waits = 32 * 2 * (1.5 * 650 * 4096 * 2 / 100e6 + 6 * 0.01)
    assert four.prefill_ms_by_class["communication"] == pytest.approx(waits)
    assert four.prefill_ms_by_class["ffn"] == pytest.approx(one.prefill_ms_by_class["ffn"] / 4)
    assert "communication" not in one.prefill_ms_by_class


def test_rows_travel_to_their_experts():
    """Two all-to-alls a layer: of each row's two copies seven eighths leave."""
    spec = ModelSpec.from_config(MOE)
    request = Workload(visual_tokens=0, system_tokens=0, text_tokens=100)
    found = latency(cost(spec, request, dense(2), "causal"), device(link_gbs=100, parallel=Parallel(ep=8)))
    waits = 2 * 2 * (7 / 8 * 100 * 64 * 2 * 2 / 100e6 + 0.01)
    assert found.prefill_ms_by_class["communication"] == pytest.approx(waits)


def test_a_pipeline_saves_memory_and_no_time():
    found = cost(SPEC, PROMPT, dense(32), "causal")
    one, two = (latency(found, device(link_gbs=100, parallel=Parallel(pp=pp))) for pp in (1, 2))
    assert two.memory.total < one.memory.total
    assert two.prefill_ms > one.prefill_ms


def test_devices_without_a_link_are_refused():
    with pytest.raises(InputError, match="link_gbs"):
        latency(cost(SPEC, PROMPT, dense(32), "causal"), device(parallel=Parallel(tp=2)))


def test_a_report_says_what_does_not_fit(tmp_path):
    from click.testing import CliRunner

    from planner.cli import cli

    for arguments, says in (
        (["--hardware", "t4"], "does not fit"),
        (["--hardware", "h100-sxm"], "up to batch"),
        (["--hardware", "l4", "--batch", "200"], "does not fit; batch"),
        (["--hardware", "t4", "--tp", "2"], "2 x NVIDIA T4"),
    ):
        for fmt in ("table", "md", "html"):
            shown = CliRunner().invoke(cli, ["report", "internvl2.5-8b", *arguments, "--format", fmt])
            assert shown.exit_code == 0 and says in shown.output, (arguments, fmt)
    found = CliRunner().invoke(cli, ["report", "internvl2.5-8b", "--hardware", "t4", "--format", "json"])
    assert json.loads(found.output)["rows"][0]["latency_estimate"]["fits"] is False
    found = CliRunner().invoke(cli, ["report", "internvl2.5-8b", "--hardware", "t4", "--format", "csv"])
    assert "False" in found.output
