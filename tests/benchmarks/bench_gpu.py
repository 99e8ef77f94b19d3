"""Dense against planned on a GPU: random-weight LLaVA-1.5-7B and Qwen2-VL-7B shapes in bfloat16, built on the device.

    python -m tests.benchmarks.bench_gpu --out reports/benchmark-gpu.md [--models llava qwen2_vl] [--batches 1 8]

Weights are random, so what a token *says* means nothing; what it *costs* is the same as with trained weights. Measured
columns are times of this run; the predicted column is arithmetic and stands apart: the planned share of the dense
decoder's FLOPs, counting the causal half of attention.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from planner.cost import cost
from planner.policies import parse
from planner.runtime import ImageCache, attach
from planner.runtime.bench import BenchResult, bench
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec
from planner.workload import Workload

IMAGE = 32000
PLANS = {
    "llava": {
        "visipruner": "visipruner:filter=8,keep=10,exit=24,visual_attention=self",
        "visipruner, image cached": "visipruner:filter=8,keep=10,exit=24,visual_attention=self",
        "fastv": "fastv:k=2,ratio=0.75",
    },
    "qwen2_vl": {
        "visipruner": "visipruner:filter=8,keep=32,exit=22,visual_attention=self",
        "visipruner, image cached": "visipruner:filter=8,keep=32,exit=22,visual_attention=self",
        "fastv": "fastv:k=2,ratio=0.75",
    },
}


def llava() -> Any:
    """LLaVA-1.5-7B's shape: CLIP-L/336 and a 7B Llama."""
    text = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
    return LlavaForConditionalGeneration, LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, image_seq_length=576
    )


def qwen2_vl() -> Any:
    """Qwen2-VL-7B's shape: grouped key/value heads and multi-axis rotary embeddings."""
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "rope_scaling": rope,
    }
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    return Qwen2VLForConditionalGeneration, Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=IMAGE + 1
    )


def prompt(family: str, batch: int, device: str, seed: int = 0) -> tuple[dict[str, torch.Tensor], Workload]:
    """A batch of equal shape and other content: 35 tokens, the image, 39 tokens (32 for Qwen)."""
    generator = torch.Generator().manual_seed(seed)
    system, visual, text = (35, 576, 39) if family == "llava" else (32, 1024, 32)
    ids = torch.randint(5, 31000, (batch, system + visual + text), generator=generator)
    ids[:, system : system + visual] = IMAGE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family == "llava":
        inputs["pixel_values"] = torch.randn(batch, 3, 336, 336, generator=generator).bfloat16()
        size = (336, 336)
    else:
        ids[:, system - 1] = IMAGE + 1
        inputs["pixel_values"] = torch.randn(batch * 4096, 1176, generator=generator).bfloat16()
        inputs["image_grid_thw"] = torch.tensor([[1, 64, 64]] * batch)
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        size = (896, 896)
    workload = Workload(visual_tokens=visual, text_tokens=text, system_tokens=system, batch=batch, images=(size,))
    return {name: value.to(device) for name, value in inputs.items()}, workload


def build(family: str, device: str) -> Any:
    """The model, its weights drawn on the device."""
    model_class, config = llava() if family == "llava" else qwen2_vl()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = model_class._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    model.generation_config.pad_token_id = 0
    return model.eval()


def row(name: str, result: BenchResult, predicted: float | None) -> str:
    dense, planned = result.dense, result.planned

    def peak(measured: Any) -> str:
        return "-" if measured.peak_memory_bytes is None else f"{measured.peak_memory_bytes / 2**30:.2f}"

    cells = [
        name,
        str(result.batch),
        f"{dense.prefill_ms:.1f}",
        f"{planned.prefill_ms:.1f}",
        f"{result.prefill_ratio:.3f}",
        f"{result.decoder_prefill_ratio:.3f}",
        "-" if predicted is None else f"{predicted:.3f}",
        f"{dense.decode_ms:.2f}",
        f"{planned.decode_ms:.2f}",
        f"{peak(dense)} / {peak(planned)}",
        f"{dense.kv_cache_bytes / 2**20:.0f} / {planned.kv_cache_bytes / 2**20:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| model, plan | batch | dense prefill ms | planned | ratio | ratio, decoder | predicted, decoder "
    "| dense decode ms | planned | peak GiB | KV MiB |\n|---|" + "---:|" * 10
)


def decoder_share(spec: ModelSpec, workload: Workload, schedule: Schedule) -> float:
    """Predicted share of the decoder's prefill FLOPs, `causal` convention."""

    def decoder(found: Any) -> float:
        parts = ("attention_projections", "attention_scores", "ffn", "selector")
        return float(sum(found.prefill[part] for part in parts))

    planned = cost(spec, workload, schedule, convention="causal")
    return decoder(planned) / decoder(cost(spec, workload, dense(schedule.layers), convention="causal"))


def measure(family: str, batches: list[int], rounds: int, device: str) -> list[str]:
    """One table row per batch and plan."""
    rows = []
    started = time.perf_counter()
    model = build(family, device)
    spec = ModelSpec.from_config(model.config.to_dict())
    print(f"{family}: built in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    for batch in batches:
        inputs, workload = prompt(family, batch, device)
        for name, text in PLANS[family].items():
            schedule = parse(text).schedule(spec)
            cache = ImageCache(max_bytes=8 << 30) if "cached" in name else None
            if cache is not None:
                with attach(model, schedule, image_cache=cache) as handle:
                    handle.encode_image(**inputs)
            result = bench(model, inputs, schedule, rounds=rounds, new_tokens=32, image_cache=cache)
            share = None if cache is not None else decoder_share(spec, workload, schedule)
            rows.append(row(f"{family}, {name}", result, share))
            print(rows[-1], file=sys.stderr, flush=True)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["llava", "qwen2_vl"], choices=["llava", "qwen2_vl"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here: run this where torch.cuda.is_available(), or name another --device")
    rows = [
        line for family in options.models for line in measure(family, options.batches, options.rounds, options.device)
    ]
    place = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    lines = [
        "# Dense against planned on a GPU",
        "",
        f"{place}, torch {torch.__version__}, transformers {transformers.__version__}, bfloat16, sdpa; random",
        f"weights in the shapes of LLaVA-1.5-7B and Qwen2-VL-7B. Medians of {options.rounds} rounds, dense and planned",
        "in turn; 32 generated tokens; prefill includes the vision encoder, the decoder column does not. Predicted:",
        "share of the decoder's prefill FLOPs, `causal` convention. Made by",
        "`python -m tests.benchmarks.bench_gpu --out reports/benchmark-gpu.md`.",
        "",
        HEADER,
        *rows,
        "",
    ]
    if options.out is not None:
        options.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
