"""What a plan costs the host: processor time of prefill and decode steps over the dense model's, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_host --out reports/benchmark-host.md

At batch 1 a decoder on a fast GPU waits for Python. So the model here has a real decoder's depth and next to no width:
32 layers, hidden size 64, 92 tokens. What is measured is the processor time of the process, one thread; every variant
runs right after the dense model, ratios are formed pair by pair, and their median and quartiles are reported.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlavaConfig, LlavaForConditionalGeneration

from planner.policies import parse
from planner.runtime import attach
from planner.spec import ModelSpec

LAYERS, HIDDEN, SIDE, SYSTEM, TEXT, STEPS = 32, 64, 8, 12, 16, 8
IMAGE = 99
PLANS = {
    "no plan, again": None,
    "empty": "dense",
    "visipruner": "visipruner:filter=8,keep=10,exit=24,visual_attention=self",
    "visipruner, merge first": "visipruner:filter=8,keep=10,exit=24,merge_first=true",
    "visipruner, probe first": "visipruner:filter=8,keep=10,exit=24,probe=true,visual_attention=self",
    "fastv": "fastv:k=2,ratio=0.75",
    "prellm": "prellm:keep=0.25,rank_by=norm",
}


def build() -> Any:
    """A LLaVA of 64 visual tokens."""
    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 100,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIDE * 4,
            "patch_size": 4,
            "projection_dim": 32,
        },
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def once(model: Any, inputs: dict[str, Any]) -> tuple[float, float]:
    """Processor milliseconds of a prefill and of one decode step."""
    begin = time.process_time()
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    prefilled = time.process_time()
    token = torch.tensor([[5]])
    for _ in range(STEPS):
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    done = time.process_time()
    return 1e3 * (prefilled - begin), 1e3 * (done - prefilled) / STEPS


def measure(rounds: int) -> list[str]:
    """Table rows."""
    model = build()
    spec = ModelSpec.from_config(model.config.to_dict())
    ids = [3] * SYSTEM + [IMAGE] * SIDE * SIDE + [4] * TEXT
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(1, 3, SIDE * 4, SIDE * 4),
    }
    variants: dict[str, Callable[[], AbstractContextManager[Any]]] = {}
    for name, policy in PLANS.items():
        schedule = None if policy is None else parse(policy).schedule(spec)
        variants[name] = nullcontext if schedule is None else lambda schedule=schedule: attach(model, schedule)
    found: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = {name: [] for name in variants}
    with torch.inference_mode():
        for _ in range(3):
            once(model, inputs)
        for _ in range(rounds):
            for name, variant in variants.items():
                dense = once(model, inputs)
                with variant():
                    found[name].append((dense, once(model, inputs)))
    rows = []
    for name, pairs in found.items():
        cells = [name]
        for column in (0, 1):
            ratios = [mine[column] / dense[column] for dense, mine in pairs]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells += [
                f"{statistics.median(mine[column] for _, mine in pairs):.2f}",
                f"{middle:.3f} ({low:.3f}-{high:.3f})",
            ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    lines = [
        "# Host time of a plan",
        "",
        f"Processor time of one thread, {LAYERS} layers, hidden size {HIDDEN}, {SYSTEM + SIDE * SIDE + TEXT} tokens, "
        f"{SIDE * SIDE} of them visual. Medians (quartiles) over {options.rounds} rounds, every variant right after "
        "the dense model.",
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}.",
        "",
        "| plan | prefill ms | over dense | decode step ms | over dense |",
        "|---|---|---|---|---|",
        *measure(options.rounds),
        "",
    ]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
