"""`plan bench`: dense against planned on this machine, beside what the cost model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.completion import MODEL, PLAN, devices, names
from planner.cli.options import fits, load_for, loading, other_weights
from planner.cli.words import Verb, option

if TYPE_CHECKING:
    from calibrate.inputs.load_options import LoadOptions
    from planner.cost import Cost
    from planner.cost.hardware import Hardware
    from planner.runtime.bench import BenchResult


@click.command(
    "bench",
    cls=Verb,
    examples=[
        "plan bench plan.json",
        "plan bench plan.json --batch-size 8 --rounds 30",
    ],
)
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path), shell_complete=PLAN)
@click.option("--model", shell_complete=MODEL, help="Hub id or directory. [default: the model that the plan names]")
@click.option(
    "--image", type=click.Path(path_type=Path), help="Image file. [default: one of the model's bundled samples]"
)
@click.option("--prompt", default="What is in the image?", show_default=True, help="Question about the image.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Copies of the request in one batch."
)
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Runs of each side.")
@option(
    "--max-new-tokens",
    "new_tokens",
    aliases=["--new-tokens"],
    type=click.IntRange(2),
    default=16,
    show_default=True,
    help="Tokens to generate per run.",
)
@click.option(
    "--hardware",
    "row_name",
    metavar="ROW",
    shell_complete=names(devices, files=True),
    help="Row or JSON file for the second prediction. [default: fitted to dense runs on this device]",
)
@click.option("--fit-hardware", metavar="NAME", help="Write the row that was fitted to this device as NAME.json.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "md", "json"]),
    default="table",
    show_default=True,
    help="Plain text, Markdown or JSON; JSON adds the time of every round.",
)
@other_weights
@loading
def command(
    plan_path: Path,
    model: str | None,
    image: Path | None,
    prompt: str,
    batch_size: int,
    rounds: int,
    new_tokens: int,
    row_name: str | None,
    fit_hardware: str | None,
    fmt: str,
    allow_other_weights: bool,
    loading_options: LoadOptions,
) -> None:
    """Measure time and memory, dense and planned.

    Runs without and with PLAN alternate. The table has prefill and decode time, peak memory and KV cache, and beside
    the measured ratios two predictions: by FLOPs alone, and by FLOPs with the bytes that every layer reads. The
    constants of the second are fitted to dense runs of a few lengths, or come from a hardware row.
    """
    if row_name is not None and fit_hardware is not None:
        raise click.UsageError("--fit-hardware measures this device; --hardware takes a row as it is: give one of them")
    from calibrate.inputs.batches import Batches
    from calibrate.inputs.encode import Encoder
    from calibrate.inputs.identity import identify
    from calibrate.inputs.samples import Sample, SampleSet
    from planner.cost.hardware import hardware
    from planner.errors import InputError
    from planner.files import is_file
    from planner.plan import load_plan
    from planner.report.bench_view import render
    from planner.runtime.bench import bench

    row = None if row_name is None else hardware(row_name)
    plan = load_plan(plan_path)
    image = image or _bundled_image(plan.model.id)
    if image is None or not is_file(image):
        raise InputError(f"there is no image {image or ''}".strip(), "Give --image")
    loaded = load_for(plan.model.id, model, loading_options)
    known = identify(loaded.model, loaded.id)
    encoder = Encoder(loaded.processor, known.visual_ids)
    fits(plan, loaded, encoder, allow_other_weights)
    requests = SampleSet((Sample((image,), prompt, where="the prompt"),) * batch_size, source=str(image))
    batches = Batches(requests, encoder, loaded.model, batch_size)
    schedule = plan.decision.schedule
    inputs = batches[0].inputs
    measured = bench(loaded.model, inputs, schedule, rounds=rounds, new_tokens=new_tokens, seed=plan.decision.seed)
    costs = _costs_of(loaded.model, known.spec, batches.shapes()[0], schedule, batch_size, new_tokens)
    if row is None:
        try:
            row = _fitted(fit_hardware or "this device", loaded.model, inputs, measured, costs[0], rounds)
        except InputError as error:
            if fit_hardware is not None:
                raise
            click.echo(f"Warning: {error.cause}; only FLOPs predict", err=True)
    click.echo(render(measured, costs, row, fmt), nl=False)
    if fit_hardware is not None:
        _write(fit_hardware, row)


def _bundled_image(model_id: str) -> Path | None:
    from calibrate.inputs.bundled import reference
    from calibrate.inputs.samples import load_samples

    found = reference(model_id)
    if found is None:
        return None
    first = load_samples(found.evaluation)[0].images[0]
    return first if isinstance(first, Path) else None


def _costs_of(
    model: Any, spec: Any, shape: tuple[int, int, int], schedule: Any, batch_size: int, new_tokens: int
) -> tuple[Cost, Cost]:
    """What a request costs dense and planned.

    Args:
        shape: system, visual and text tokens.
    """
    from planner.cost import cost
    from planner.schedule import dense
    from planner.workload import Workload

    system, visual, text = shape
    bits = model.dtype.itemsize * 8
    workload = Workload(
        visual_tokens=visual,
        text_tokens=text,
        system_tokens=system,
        output_tokens=new_tokens,
        batch=batch_size,
        kv_bits=bits,
        weight_bits=bits,
    )
    return cost(spec, workload, dense(spec.layers), "causal"), cost(spec, workload, schedule, "causal")


def _fitted(
    name: str, model: Any, inputs: Any, measured: BenchResult, dense_cost: Cost, rounds: int
) -> Hardware | None:
    """A hardware row fitted to this device: to the request that was measured dense, and to text-only prompts.

    Returns:
        None, with a warning, for a model whose matrix products cannot be run alone.
    """
    import torch

    from planner.cost.fit import Timing, fit, row_timings
    from planner.cost.hardware import shipped_row, shipped_rows
    from planner.runtime.bench import FITTED_ROWS, product_elements, row_times

    spec, bits = dense_cost.spec, dense_cost.workload.weight_bits
    weights = sum(layer.attention.projection_macs + layer.ffn.macs for layer in spec.decoder.layers)
    if product_elements(model) != weights:
        click.echo("Warning: layers that are not all linear are not fitted; give --hardware", err=True)
        return None
    rows = sorted({*FITTED_ROWS, measured.prompt_tokens})
    found = row_times(model, rows, int(inputs["input_ids"][0, -1]), rounds)
    timings = [
        Timing(dense_cost, "decoder", measured.dense.decoder_prefill_ms),
        Timing(dense_cost, "model", measured.dense.prefill_ms),
        *row_timings(spec, bits, [(one.rows, one.products_ms, one.attention_ms, one.decoder_ms) for one in found]),
    ]
    on_gpu = inputs["input_ids"].device.type == "cuda"
    memory = torch.cuda.get_device_properties(inputs["input_ids"].device).total_memory if on_gpu else _memory_bytes()
    return fit(
        timings,
        name=name,
        dtype=measured.dtype,
        memory_gb=memory / 1e9,
        source=f"fitted by plan bench on {measured.device}, torch {measured.torch_version}, {rounds} rounds",
        asynchronous=on_gpu,
        known=next((row for row in map(shipped_row, shipped_rows()) if row.name in measured.device), None),
    )


def _memory_bytes() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _write(name: str, row: Hardware | None) -> None:
    from planner.document import canonical, write_atomic
    from planner.errors import InputError

    if row is None:
        raise InputError("no row could be fitted to this model", "Fit it with a model of linear layers")
    path = Path(f"{name}.json")
    write_atomic(path, canonical(row.model_dump(mode="json")))
    click.echo(f"wrote {path}: use it with `plan report --hardware {path}`", err=True)
