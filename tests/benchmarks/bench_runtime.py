"""What the runtime saves on a CPU: measured prefill ratios beside the predicted ones, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_runtime --out reports/benchmark-runtime.md

A random-weight LLaVA with a decoder of 16 layers and hidden size 1024 (and next to no vision encoder), float32. All
variants take turns within a round; ratios are formed round by round and their median reported, so that a busy machine
touches both sides alike. Times are CPU time of the process, one thread, in the text tower, with everything the plan
does on the way in and out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlavaConfig, LlavaForConditionalGeneration

from planner.cost import cost
from planner.policies import parse
from planner.runtime import ImageCache, LayerView, attach, observe
from planner.runtime.bench import kv_cache_bytes, tower_clock
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec
from planner.workload import Workload

LAYERS, HIDDEN, SYSTEM, TEXT = 16, 1024, 35, 39
IMAGE = 999
PLANS = {"visipruner": "visipruner:filter=4,keep=10,exit=12", "fastv": "fastv:k=2,ratio=0.75"}


def build(side: int) -> Any:
    """A LLaVA whose image of `side` pixels gives ``(side / 14)^2`` visual tokens."""
    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": 2816,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": 1000,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": 14,
            "projection_dim": 32,
        },
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def look(view: LayerView) -> None:
    """What the influence probe asks of every layer."""
    view.influence()


def predicted(spec: ModelSpec, workload: Workload, schedule: Schedule) -> float:
    """Share of the dense decoder's prefill FLOPs, causal half of the attention."""

    def decoder(plan: Schedule) -> float:
        found = cost(spec, workload, plan, convention="causal").prefill
        return float(sum(found[part] for part in ("attention_projections", "attention_scores", "ffn", "selector")))

    return decoder(schedule) / decoder(dense(schedule.layers))


def measure(side: int, rounds: int) -> list[str]:
    """Table rows for one number of visual tokens."""
    model, visual = build(side), (side // 14) ** 2
    spec = ModelSpec.from_config(model.config.to_dict())
    workload = Workload(visual_tokens=visual, text_tokens=TEXT, system_tokens=SYSTEM)
    ids = torch.randint(5, 900, (1, SYSTEM + visual + TEXT), generator=torch.Generator().manual_seed(1))
    ids[:, SYSTEM : SYSTEM + visual] = IMAGE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, side, side)}
    plans = {name: parse(text).schedule(spec) for name, text in PLANS.items()}
    cache = ImageCache()
    with attach(model, plans["visipruner"], image_cache=cache) as handle:
        handle.encode_image(**inputs)

    variants: dict[str, tuple[Callable[[], AbstractContextManager[Any]], float | None]] = {
        "dense": (nullcontext, 1.0),
        "empty plan": (lambda: attach(model, dense(LAYERS)), 1.0),
        "signals on every layer": (lambda: observe(model, look), None),
        **{name: (_attached(model, plan), predicted(spec, workload, plan)) for name, plan in plans.items()},
        "visipruner, image cached": (_attached(model, plans["visipruner"], cache), None),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    held = {}
    for number in range(rounds + 1):
        for name, (context, _) in variants.items():
            with context(), torch.inference_mode():
                prefill, step, held[name] = _one(model, inputs)
            if number:  # the first round warms up
                times[name].append((prefill, step))
    return [_row(name, visual, times, held[name], share) for name, (_, share) in variants.items()]


def _attached(model: Any, plan: Schedule, cache: ImageCache | None = None) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: attach(model, plan, image_cache=cache)


def _one(model: Any, inputs: dict[str, torch.Tensor], steps: int = 8) -> tuple[float, float, int]:
    """Milliseconds of the text tower in the prefill and in a decode step, and the cache's bytes."""
    with tower_clock(model, torch.device("cpu"), time.process_time) as spans:
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        held = kv_cache_bytes(output.past_key_values)
        with _steps(model, output.past_key_values, steps) as decode:
            pass
    return spans[0] * 1e3, decode[0], held


@contextmanager
def _steps(model: Any, cache: Any, steps: int) -> Iterator[list[float]]:
    start = time.process_time()
    for _ in range(steps):
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    yield [(time.process_time() - start) * 1e3 / steps]


def _row(name: str, visual: int, times: dict[str, list[tuple[float, float]]], held: int, share: float | None) -> str:
    def ratio(column: int) -> float:
        pairs = zip(times[name], times["dense"], strict=True)
        return statistics.median(mine[column] / dense_time[column] for mine, dense_time in pairs)

    prefill, decode = (statistics.median(time_[column] for time_ in times[name]) for column in (0, 1))
    cells = [name, str(visual), f"{prefill:.0f}", f"{ratio(0):.3f}", "-" if share is None else f"{share:.3f}"]
    return "| " + " | ".join([*cells, f"{decode:.1f}", f"{ratio(1):.3f}", f"{held / 2**20:.1f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=[336, 672], help="image sides in pixels")
    options = parser.parse_args()
    rows = [line for side in options.sides for line in measure(side, options.rounds)]
    lines = [
        "# Dense against planned on a CPU",
        "",
        f"Decoder of {LAYERS} layers, hidden size {HIDDEN}, FFN 2816, random weights, float32; {SYSTEM} text tokens,",
        f"the image, {TEXT} text tokens; batch 1; {torch.get_num_threads()} thread(s); torch {torch.__version__},",
        f"transformers {transformers.__version__}; median of {options.rounds} rounds in which all variants take turns.",
        "Times are CPU time of the process in the text tower, as the machine was shared.",
        "Predicted: share of the decoder's prefill FLOPs, `causal` convention. Made by",
        "`OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_runtime --out reports/benchmark-runtime.md`.",
        "",
        "Plans: " + "; ".join(f"{name} = `{text}`" for name, text in PLANS.items()) + ".",
        "",
        "| variant | visual tokens | prefill ms | ratio | predicted | decode ms | ratio | KV MiB |",
        "|---|" + "---:|" * 7,
        *rows,
        "",
    ]
    if options.out is not None:
        options.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
