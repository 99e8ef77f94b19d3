"""`plan bench`: dense against planned on this machine, beside what the cost model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import load_for, loading

if TYPE_CHECKING:
    from calibrate.inputs.load_options import LoadOptions
    from planner.cost import Cost
    from planner.runtime.bench import BenchResult


@click.command("bench")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--model", help="Hub id or directory. [default: the model that the plan names]")
@click.option(
    "--image", type=click.Path(path_type=Path), help="Image file. [default: one of the model's bundled samples]"
)
@click.option("--prompt", default="What is in the image?", show_default=True, help="Question about the image.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Copies of the request in one batch."
)
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Runs of each side.")
@click.option("--new-tokens", type=click.IntRange(2), default=16, show_default=True, help="Tokens to generate per run.")
@click.option(
    "--fit-hardware", metavar="NAME", help="Fit a hardware row to the measured times and write it as NAME.json."
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "md", "json"]),
    default="table",
    show_default=True,
    help="Plain text, Markdown or JSON; JSON adds the time of every round.",
)
@loading
def command(
    plan_path: Path,
    model: str | None,
    image: Path | None,
    prompt: str,
    batch_size: int,
    rounds: int,
    new_tokens: int,
    fit_hardware: str | None,
    fmt: str,
    loading_options: LoadOptions,
) -> None:
    """Measure time and memory, dense and planned.

    Runs without and with PLAN alternate. The table has prefill and decode time, peak memory and KV cache, and beside
    the measured ratios those that the cost model predicts.
    """
    from calibrate.inputs.batches import Batches
    from calibrate.inputs.encode import Encoder
    from calibrate.inputs.identity import identify
    from calibrate.inputs.samples import Sample, SampleSet
    from planner.cost import cost
    from planner.errors import InputError
    from planner.plan import load_plan
    from planner.runtime.bench import bench
    from planner.schedule import dense
    from planner.workload import Workload

    plan = load_plan(plan_path)
    image = image or _bundled_image(plan.model.id)
    if image is None or not image.is_file():
        raise InputError(f"there is no image {image or ''}".strip(), "Give --image")
    loaded = load_for(plan.model.id, model, loading_options)
    plan.check(loaded.model.config.to_dict())
    known = identify(loaded.model, loaded.id)
    encoder = Encoder(loaded.processor, known.visual_ids)
    requests = SampleSet((Sample((image,), prompt, where="the prompt"),) * batch_size, source=str(image))
    batches = Batches(requests, encoder, loaded.model, batch_size)
    schedule = plan.decision.schedule
    measured = bench(
        loaded.model, batches[0].inputs, schedule, rounds=rounds, new_tokens=new_tokens, seed=plan.decision.seed
    )
    system, visual, text = batches.shapes()[0]
    workload = Workload(
        visual_tokens=visual,
        text_tokens=text,
        system_tokens=system,
        output_tokens=new_tokens,
        batch=batch_size,
        kv_bits=loaded.model.dtype.itemsize * 8,
        weight_bits=loaded.model.dtype.itemsize * 8,
    )
    costs = cost(known.spec, workload, dense(known.layers)), cost(known.spec, workload, schedule)
    _show(measured, costs, fmt)
    if fit_hardware is not None:
        _fit(fit_hardware, measured, costs)


def _bundled_image(model_id: str) -> Path | None:
    from calibrate.inputs.load import reference_path
    from calibrate.inputs.samples import load_samples

    if not model_id.startswith("reference/"):
        return None
    first = load_samples(reference_path("easy_vqa") / "evaluation.jsonl")[0].images[0]
    return first if isinstance(first, Path) else None


def _show(result: BenchResult, costs: tuple[Cost, Cost], fmt: str) -> None:
    import dataclasses

    from tabulate import tabulate

    from planner.document import canonical

    before, after = costs
    predicted = {
        "prefill ms": after.prefill_flops / before.prefill_flops,
        "decoder prefill ms": _decoder_flops(after) / _decoder_flops(before),
        "decode ms per token": after.decode_flops_per_token / before.decode_flops_per_token,
        "KV cache bytes": after.kv_cache_bytes / before.kv_cache_bytes,
    }
    pairs = {
        "prefill ms": (result.dense.prefill_ms, result.planned.prefill_ms),
        "decoder prefill ms": (result.dense.decoder_prefill_ms, result.planned.decoder_prefill_ms),
        "decode ms per token": (result.dense.decode_ms, result.planned.decode_ms),
        "KV cache bytes": (result.dense.kv_cache_bytes, result.planned.kv_cache_bytes),
        "peak memory bytes": (result.dense.peak_memory_bytes, result.planned.peak_memory_bytes),
    }
    if fmt == "json":
        click.echo(canonical({"measured": dataclasses.asdict(result), "predicted_ratio": predicted}), nl=False)
        return
    rows = [
        [
            name,
            "" if one is None else f"{one:,.2f}" if name.endswith(("ms", "token")) else f"{one:,}",
            "" if other is None else f"{other:,.2f}" if name.endswith(("ms", "token")) else f"{other:,}",
            f"{other / one:.3f}" if one and other is not None else "",
            f"{predicted[name]:.3f}" if name in predicted else "",
        ]
        for name, (one, other) in pairs.items()
    ]
    headers = ["", "dense", "planned", "measured ratio", "predicted ratio"]
    style = "github" if fmt == "md" else "simple"
    click.echo(
        f"{result.device}, {result.dtype}, {result.threads} threads, torch {result.torch_version}, "
        f"transformers {result.transformers_version}; batch {result.batch}, {result.prompt_tokens} prompt tokens, "
        f"{result.rounds} rounds in turns, medians\n"
    )
    click.echo(tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=["left"] + ["right"] * 4))
    if result.report is not None:
        per_layer = " ".join(str(layer[0]) for layer in result.report.visual)
        click.echo(f"\nvisual tokens per layer: {per_layer}")


def _decoder_flops(of: Cost) -> float:
    return float(of.prefill_flops - of.prefill["vision"] - of.prefill["projector"])


def _fit(name: str, result: BenchResult, costs: tuple[Cost, Cost]) -> None:
    import torch

    from planner.cost.fit import Timing, fit
    from planner.cost.hardware import shipped_row, shipped_rows
    from planner.cost.roofline import weight_bytes
    from planner.document import canonical, write_atomic

    timings = []
    for side, of in zip((result.dense, result.planned), costs, strict=True):
        read = sum(weight_bytes(of.spec, of.workload, of.workload.batch).values()) + of.kv_cache_bytes
        towers = weight_bytes(of.spec, of.workload, 1)
        timings.append(Timing(of.prefill_flops, 0, side.prefill_ms))
        timings.append(Timing(0, read - towers["vision"] - towers["projector"], side.decode_ms))
    on_gpu = torch.cuda.is_available() and result.device == torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else _memory_bytes()
    rows = {shipped_row(row).name: shipped_row(row) for row in shipped_rows()}
    row = fit(
        timings,
        layers=costs[0].spec.layers,
        name=name,
        dtype=result.dtype,
        memory_gb=memory / 1e9,
        source=f"fitted by plan bench on {result.device}, torch {result.torch_version}, {result.rounds} rounds",
        known=next((row for known, row in rows.items() if known in result.device), None),
    )
    path = Path(f"{name}.json")
    write_atomic(path, canonical(row.model_dump(mode="json")))
    click.echo(f"wrote {path}: use it with `plan report --hardware {path}`", err=True)


def _memory_bytes() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
