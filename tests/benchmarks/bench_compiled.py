"""Compiled prefills: dense and planned, eager and compiled, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_compiled --out reports/benchmark-compiled.md
    python -m tests.benchmarks.bench_compiled --device cuda --mode reduce-overhead --batches 1 8

On a CPU a decoder of 16 layers and hidden size 1024 in float32; on a GPU LLaVA-1.5-7B's shape in bfloat16. Weights are
random, the vision encoder does not count. Times are those of the text tower, in milliseconds, medians over rounds in
which all four variants run in turn. Prompts fill their bucket. Predicted is the planned share of the dense decoder's
prefill FLOPs, counting the causal half of attention.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from planner.policies import parse
from planner.runtime import attach
from planner.runtime.bench import tower_clock
from planner.runtime.model.exchange import wrapped
from planner.spec import ModelSpec
from planner.workload import Workload
from tests.benchmarks import bench_gpu, bench_runtime

PLANS = {
    "cpu": {"visipruner": "visipruner:filter=6,keep=10,exit=12,visual_attention=self", "fastv": "fastv:k=2,ratio=0.75"},
    "cuda": {
        "visipruner": "visipruner:filter=8,keep=10,exit=24,visual_attention=self",
        "fastv": "fastv:k=2,ratio=0.75",
    },
}
HEADER = (
    "| plan | visual tokens | batch | dense eager | planned eager | ratio | dense compiled | planned compiled | ratio "
    "| predicted |\n|---|" + "---:|" * 9
)


@contextmanager
def dense_compiled(model: Any, options: dict[str, Any]) -> Iterator[None]:
    """The text tower's dense prefill as one graph, its cache made inside it."""

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(arguments: dict[str, Any]) -> Any:
            cache = DynamicCache()
            output = original(**arguments, past_key_values=cache, use_cache=True)
            return output[0], [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]

        graph = torch.compile(run, fullgraph=True, dynamic=False, **options)

        def forward(**kwargs: Any) -> Any:
            arguments = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "use_cache", "attention_mask")}
            hidden, keys, values = graph(arguments)
            cache = DynamicCache()
            for index, (key, value) in enumerate(zip(keys, values, strict=True)):
                cache.update(key.clone(), value.clone(), index)
            return BaseModelOutputWithPast(last_hidden_state=hidden.clone(), past_key_values=cache)

        return forward

    with wrapped(model.model.language_model, "forward", around):
        yield


def clock(device: str) -> Callable[[], float] | None:
    """Processor time on a CPU, the synchronised wall clock elsewhere."""
    return time.process_time if device == "cpu" else None


def measure(
    model: Any, inputs: dict[str, Any], workload: Workload, plans: dict[str, str], rounds: int, options: dict[str, Any]
) -> Iterator[str]:
    """Table rows of one prompt shape."""
    device = str(model.device.type)
    spec = ModelSpec.from_config(model.config.to_dict())
    length = inputs["input_ids"].shape[1]
    context = dense_compiled(model, options)

    def once(variant: AbstractContextManager[Any]) -> float:
        with variant, tower_clock(model, model.device, clock(device)) as times:
            model(**inputs, use_cache=True, logits_to_keep=1)
        return 1e3 * float(times[-1])

    with torch.inference_mode():
        once(nullcontext())
        dense_graph: list[float] = []
        with context:
            for _ in range(3 + rounds):
                dense_graph.append(once(nullcontext()))
        for name, text in plans.items():
            schedule = parse(text).schedule(spec)
            planned: list[float] = []
            graph: list[float] = []
            dense: list[float] = []
            with attach(model, schedule) as handle:
                handle.compile_prefill(buckets=(length,), **options)
                for _ in range(3 + rounds):
                    graph.append(once(nullcontext()))
            for _ in range(2 + rounds):
                dense.append(once(nullcontext()))
                with attach(model, schedule):
                    once(nullcontext())
                    planned.append(once(nullcontext()))
            four = [statistics.median(times[-rounds:]) for times in (dense, planned, dense_graph, graph)]
            share = bench_gpu.decoder_share(spec, workload, schedule)
            cells = [
                name,
                str(workload.visual_tokens),
                str(len(inputs["input_ids"])),
                f"{four[0]:.2f}",
                f"{four[1]:.2f}",
            ]
            cells += [f"{four[1] / four[0]:.3f}", f"{four[2]:.2f}", f"{four[3]:.2f}", f"{four[3] / four[2]:.3f}"]
            yield "| " + " | ".join([*cells, f"{share:.3f}"]) + " |"


def shapes(device: str, batches: list[int]) -> Iterator[tuple[Any, dict[str, Any], Workload]]:
    """Models, prompts, and what is asked."""
    if device == "cuda":
        model = bench_gpu.build("llava", device)
        for batch in batches:
            yield model, *bench_gpu.prompt("llava", batch, device)
        return
    for side in (336, 672):
        visual, system, text = (side // 14) ** 2, bench_runtime.SYSTEM, bench_runtime.TEXT
        ids = [3] * system + [bench_runtime.IMAGE] * visual + [4] * text
        for batch in batches:
            inputs = {
                "input_ids": torch.tensor([ids] * batch),
                "attention_mask": torch.ones(batch, len(ids), dtype=torch.long),
                "pixel_values": torch.randn(batch, 3, side, side),
            }
            asked = Workload(visual_tokens=visual, text_tokens=text, system_tokens=system, batch=batch)
            yield bench_runtime.build(side), inputs, asked


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--plans", nargs="+", default=["visipruner", "fastv"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mode", help="of torch.compile, such as reduce-overhead (CUDA graphs)")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if asked.device == "cpu":
        torch.set_num_threads(1)
    place = torch.cuda.get_device_name() if asked.device == "cuda" else f"{platform.machine()}, one thread"
    lines = [
        f"# Compiled prefills: {place}",
        "",
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"torch.compile mode {asked.mode or 'default'}; text tower, ms, medians of {asked.rounds} rounds.",
        "",
        HEADER,
    ]
    plans = {name: PLANS[asked.device][name] for name in asked.plans}
    options = {"mode": asked.mode} if asked.mode else {}
    print("\n".join(lines), flush=True)
    for model, inputs, workload in shapes(asked.device, asked.batches):
        for row in measure(model, inputs, workload, plans, asked.rounds, options):
            lines.append(row)
            print(row, flush=True)
            if asked.out is not None:
                asked.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    sys.exit(main())
