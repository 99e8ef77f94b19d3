"""Plans on the pretrained reference model: measured prefill ratios beside two predictions, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_pretrained MODEL --out reports/reference/pretrained/time.md

Per dtype and number of visual tokens, dense and every policy take turns; ratios are formed round by round and their
median reported. Constants of the second prediction are fitted to dense runs alone. Times are CPU time of the process
(wall time on a GPU). Other numbers of visual tokens than the model's own are had by interpolating the tower's
positions, which changes answers but not time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoModelForImageTextToText

from planner.cost import Cost, cost
from planner.cost.fit import Timing, fit, row_timings
from planner.cost.hardware import Hardware
from planner.document import write_atomic
from planner.plan import load_plan
from planner.policies import parse
from planner.report.bench_view import predicted_by_flops, predicted_by_roofline
from planner.runtime import attach
from planner.runtime.bench import FITTED_ROWS, row_times, tower_clock
from planner.schedule import Schedule, dense
from planner.spec import ModelSpec
from planner.workload import Workload

SYSTEM, TEXT = 4, 24
POLICIES = (
    "fastv:k=2,ratio=0.75",
    "fastv:k=8,ratio=0.9",
    "pyramiddrop:layers=8/15/22,keep=0.5",
    "visipruner:filter=8,keep=10,exit=26",
    "prellm:keep=0.5",
)


class Line(NamedTuple):
    """One policy at one setting. Ratios are planned over dense."""

    dtype: str
    visual: int
    policy: str
    dense_ms: float
    planned_ms: float
    ratio: float
    by_flops: float
    by_both: float


def load(folder: Path, visual: int, dtype: torch.dtype, device: str) -> Any:
    """The model, its tower set to `visual` tokens."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval().to(device)
    side = round(visual**0.5)
    if side * side != visual:
        raise SystemExit(f"{visual} visual tokens are no square")
    vision = model.config.vision_config
    embeddings = next(part for name, part in model.named_modules() if name.endswith("embeddings") and "vision" in name)
    own = vision.image_size // vision.patch_size
    if side != own:
        vision.image_size = embeddings.image_size = side * vision.patch_size
        table = embeddings.position_embedding.weight.data
        grid = table[1:].T.reshape(1, -1, own, own).float()
        resized = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic").to(table)
        weight = torch.cat([table[:1], resized.flatten(2)[0].T])
        embeddings.position_embedding = torch.nn.Embedding.from_pretrained(weight)
        embeddings.position_ids = torch.arange(visual + 1, device=device)[None]
        embeddings.num_patches, embeddings.num_positions = visual, visual + 1
        model.config.image_seq_length = visual
    return model


def request(model: Any, visual: int) -> dict[str, torch.Tensor]:
    """A prompt with one image."""
    config = model.config
    ids = torch.randint(1000, 4000, (1, SYSTEM + visual + TEXT), generator=torch.Generator().manual_seed(1))
    ids[:, SYSTEM : SYSTEM + visual] = config.image_token_index
    side = config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2)).to(model.dtype)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: value.to(model.device) for name, value in given.items()}


def measure(
    folder: Path, visual: int, dtype: torch.dtype, policies: Sequence[tuple[str, Any]], rounds: int, device: str
) -> tuple[list[Line], Hardware]:
    """Every policy at one setting, and the row that was fitted there."""
    model = load(folder, visual, dtype, device)
    spec = ModelSpec.from_config(model.config.to_dict())
    inputs = request(model, visual)
    schedules = [("dense", dense(spec.layers)), *((name, made(spec)) for name, made in policies)]
    clock = time.process_time if device == "cpu" else None
    spent: dict[str, list[float]] = {name: [] for name, _ in schedules}
    for number in range(1 + rounds):
        for name, schedule in schedules:
            context = nullcontext() if name == "dense" else attach(model, schedule)
            with context, torch.inference_mode(), tower_clock(model, torch.device(device), clock) as spans:
                model(**inputs, use_cache=True, logits_to_keep=1)
            if number:
                spent[name].append(1e3 * spans[0])
    costs = {name: price(spec, visual, schedule, dtype) for name, schedule in schedules}
    rows = row_times(model, [*FITTED_ROWS, SYSTEM + visual + TEXT], 1234, rounds, clock)
    whole = Timing(costs["dense"], "decoder", statistics.median(spent["dense"]))
    timings = row_timings(
        spec, 8 * dtype.itemsize, [(one.rows, one.products_ms, one.attention_ms, one.decoder_ms) for one in rows]
    )
    row = fit(
        [whole, *timings], name="this device", dtype=str(dtype).removeprefix("torch."), memory_gb=1,
        source="this run", asynchronous=device != "cpu",
    )  # fmt: skip
    lines = []
    for name, _ in schedules[1:]:
        pair = costs["dense"], costs[name]
        lines.append(
            Line(
                row.dtype,
                visual,
                name,
                statistics.median(spent["dense"]),
                statistics.median(spent[name]),
                statistics.median(one / other for one, other in zip(spent[name], spent["dense"], strict=True)),
                predicted_by_flops(*pair)["decoder prefill ms"],
                predicted_by_roofline(*pair, row)["decoder prefill ms"],
            )
        )
    return lines, row


def price(spec: ModelSpec, visual: int, schedule: Schedule, dtype: torch.dtype) -> Cost:
    """The request's cost."""
    bits = 8 * dtype.itemsize
    prompt = Workload(visual_tokens=visual, text_tokens=TEXT, system_tokens=SYSTEM, weight_bits=bits, kv_bits=bits)
    return cost(spec, prompt, schedule, "causal")


def off(line: Line, predicted: float) -> float:
    """Relative error of a prediction."""
    return predicted / line.ratio - 1


def report(lines: Sequence[Line], rows: Sequence[tuple[int, Hardware]], settings: str) -> str:
    """The page."""
    table = [
        f"| {one.dtype} | {one.visual} | `{one.policy}` | {one.dense_ms:.0f} | {one.planned_ms:.0f} | {one.ratio:.3f} "
        f"| {one.by_flops:.3f} ({off(one, one.by_flops):+.0%}) | {one.by_both:.3f} ({off(one, one.by_both):+.0%}) |"
        for one in lines
    ]
    fitted = [
        f"| {row.dtype} | {visual} | {1000 * row.peak_tflops * row.measured.matmul:.0f} "
        f"| {row.bandwidth_gbs * row.measured.memory:.1f} | {row.measured.layer_us:.0f} |"
        for visual, row in rows
        if row.measured is not None
    ]
    flops = [abs(off(one, one.by_flops)) for one in lines]
    both = [abs(off(one, one.by_both)) for one in lines]
    return "\n".join(
        [
            "# Time that plans save on the pretrained reference model",
            "",
            settings,
            "",
            "Prefill of the text tower, planned over dense. By FLOPs: the ratio of the decoder's FLOPs (`causal`). By",
            "FLOPs and bytes: every layer at the rows it runs, reading all its weights; constants fitted to dense runs",
            "in the same process.",
            "",
            f"Error of the prediction by FLOPs: median {statistics.median(flops):.0%}, largest {max(flops):.0%}; by",
            f"FLOPs and bytes: median {statistics.median(both):.0%}, largest {max(both):.0%}.",
            "",
            "| dtype | visual tokens | policy | dense ms | planned ms | measured | by FLOPs | by FLOPs and bytes |",
            "|---|---:|---|---:|---:|---:|---:|---:|",
            *table,
            "",
            "Fitted constants:",
            "",
            "| dtype | visual tokens | GFLOP/s in matrix products | GB/s of weights | overhead, us a layer |",
            "|---|---:|---:|---:|---:|",
            *fitted,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="folder of the rebuilt model")
    parser.add_argument("--plan", type=Path, action="append", default=[], help="measure this plan too; repeatable")
    parser.add_argument("--policy", action="append", help="in place of the built-in list; repeatable")
    parser.add_argument("--tokens", type=int, nargs="+", default=[196, 400, 576], help="visual tokens, squares")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    policies = [(text, parse(text).schedule) for text in options.policy or POLICIES]
    policies += [(path.name, lambda spec, path=path: load_plan(path).decision.schedule) for path in options.plan]
    lines, rows = [], []
    for dtype in options.dtypes:
        for visual in options.tokens:
            found, row = measure(options.model, visual, getattr(torch, dtype), policies, options.rounds, options.device)
            lines += found
            rows.append((visual, row))
    text = report(
        lines,
        rows,
        f"{options.device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {SYSTEM} + {TEXT} text tokens; medians of {options.rounds} rounds; made by "
        "`OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_pretrained MODEL --out "
        "reports/reference/pretrained/time.md`.",
    )
    if options.out is not None:
        write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
