"""What the runtime saves on a CPU: measured prefill ratios beside the predicted ones, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_runtime --out reports/benchmark-runtime.md

A random-weight LLaVA with a decoder of 16 layers and hidden size 1024 (and next to no vision encoder), float32. Every
variant is timed right after the dense model; ratios are formed pair by pair and their median reported, so that a busy
machine touches both sides alike. Times are CPU time of the process, one thread, in the text tower, with everything the
plan does on the way in and out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
PLANS = {
    "visipruner": "visipruner:filter=6,keep=10,exit=12,visual_attention=self",
    "visipruner, probe first": "visipruner:filter=6,keep=10,exit=12,probe=true,visual_attention=self",
    "fastv": "fastv:k=2,ratio=0.75",
}
Context = Callable[[], AbstractContextManager[Any]]


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


def predicted(spec: ModelSpec, workload: Workload, schedule: Schedule, planned: Workload | None = None) -> float:
    """Share of the dense decoder's prefill FLOPs, causal half of the attention; `planned` where the plan's differs."""

    def decoder(request: Workload, plan: Schedule) -> float:
        found = cost(spec, request, plan, convention="causal").prefill
        return float(sum(found[part] for part in ("attention_projections", "attention_scores", "ffn", "selector")))

    return decoder(planned or workload, schedule) / decoder(workload, dense(schedule.layers))


@dataclass
class Pair:
    """A variant, timed each time right after what it is compared with.

    Attributes:
        predicted: share of FLOPs, None where nothing is predicted.
        runs: per round, prefill and decode-step milliseconds of the other and of the variant.
        kv_cache_bytes: what the variant's cache held after the prefill.
    """

    name: str
    against: str
    variant: Context
    other: Context
    predicted: float | None
    runs: list[tuple[tuple[float, float], tuple[float, float]]] = field(default_factory=list)
    kv_cache_bytes: int = 0

    def ratio(self, column: int) -> float:
        """Median ratio of prefills (0) or decode steps (1)."""
        return statistics.median(mine[column] / other[column] for other, mine in self.runs)

    def row(self, visual: int) -> str:
        """A table row."""
        prefill, decode = (statistics.median(mine[column] for _, mine in self.runs) for column in (0, 1))
        share = "-" if self.predicted is None else f"{self.predicted:.3f}"
        cells = [self.name, self.against, str(visual), f"{prefill:.0f}", f"{self.ratio(0):.3f}", share]
        cells += [f"{decode:.1f}", f"{self.ratio(1):.3f}", f"{self.kv_cache_bytes / 2**20:.1f}"]
        return "| " + " | ".join(cells) + " |"


def measure(side: int, rounds: int) -> list[str]:
    """Table rows for one number of visual tokens."""
    model, visual = build(side), (side // 14) ** 2
    spec = ModelSpec.from_config(model.config.to_dict())
    workload = Workload(visual_tokens=visual, text_tokens=TEXT, system_tokens=SYSTEM)
    again = workload.model_copy(update={"image_stream_cached": True})
    ids = torch.randint(5, 900, (1, SYSTEM + visual + TEXT), generator=torch.Generator().manual_seed(1))
    ids[:, SYSTEM : SYSTEM + visual] = IMAGE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, side, side)}
    pairs = [
        Pair("empty plan", "dense", lambda: attach(model, dense(LAYERS)), nullcontext, 1.0),
        Pair("signals on every layer", "dense", lambda: observe(model, look), nullcontext, None),
    ]
    for name, text in PLANS.items():
        plan = parse(text).schedule(spec)
        first = _attached(model, plan)
        pairs.append(Pair(name, "dense", first, nullcontext, predicted(spec, workload, plan)))
        if plan.stages[0].isolated:
            cache = ImageCache()
            second = _attached(model, plan, cache)
            with second(), torch.inference_mode():
                model(**inputs, logits_to_keep=1)  # the first question leaves the image in the cache
            share = predicted(spec, again, plan)
            pairs.append(Pair(f"{name}, second question", "dense", second, nullcontext, share))
            own = share / predicted(spec, workload, plan)
            pairs.append(Pair(f"{name}, second question", "first question", second, first, own))
    with torch.inference_mode():
        _one(model, inputs, nullcontext)  # warms up
        for _ in range(rounds):
            for pair in pairs:
                *other, _ = _one(model, inputs, pair.other)
                *mine, pair.kv_cache_bytes = _one(model, inputs, pair.variant)
                pair.runs.append(((other[0], other[1]), (mine[0], mine[1])))
    return [pair.row(visual) for pair in pairs]


def _attached(model: Any, plan: Schedule, cache: ImageCache | None = None) -> Context:
    return lambda: attach(model, plan, image_cache=cache)


def _one(model: Any, inputs: dict[str, torch.Tensor], context: Context, steps: int = 8) -> tuple[float, float, int]:
    """Milliseconds of the text tower in the prefill and in a decode step, and the cache's bytes."""
    with context(), tower_clock(model, torch.device("cpu"), time.process_time) as spans:
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        held = kv_cache_bytes(output.past_key_values)
        start = time.process_time()
        for _ in range(steps):
            model(input_ids=torch.tensor([[7]]), past_key_values=output.past_key_values)
        step = (time.process_time() - start) / steps
    return spans[0] * 1e3, step * 1e3, held


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=[336, 672], help="image sides in pixels")
    options = parser.parse_args()
    rows = [line for side in options.sides for line in measure(side, options.rounds)]
    lines = [
        "# Dense against planned on a CPU",
        "",
        f"Decoder of {LAYERS} layers, hidden size {HIDDEN}, FFN 2816, random weights, float32; {SYSTEM} text tokens,",
        f"the image, {TEXT} text tokens; batch 1; {torch.get_num_threads()} thread(s); torch {torch.__version__},",
        f"transformers {transformers.__version__}; medians of {options.rounds} rounds; each is timed right after",
        "what it is compared with.",
        "Times are CPU time of the process in the text tower, as the machine was shared.",
        "Predicted: ratio of the decoder's prefill FLOPs, `causal` convention. Made by",
        "`OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_runtime --out reports/benchmark-runtime.md`.",
        "",
        "Plans: " + "; ".join(f"{name} = `{text}`" for name, text in PLANS.items()) + ".",
        "",
        "| variant | against | visual tokens | prefill ms | ratio | predicted | decode ms | ratio | KV MiB |",
        "|---|---|" + "---:|" * 7,
        *rows,
        "",
    ]
    if options.out is not None:
        options.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
