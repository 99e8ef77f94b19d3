"""`plan run`: answer a prompt about an image with a plan applied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.options import load_for, loading

if TYPE_CHECKING:
    from calibrate.inputs.load_options import LoadOptions


@click.command("run")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--image", "images", type=click.Path(path_type=Path), multiple=True, required=True, help="Image file; repeatable."
)
@click.option("--prompt", required=True, help="Question about the image.")
@click.option("--model", help="Hub id or directory. [default: the model that the plan names]")
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Longest answer.")
@click.option("--dense", is_flag=True, help="Also answer without the plan, for comparison.")
@click.option("--overlay", type=click.Path(path_type=Path), help="Write a PNG of the patches that the plan kept.")
@loading
def command(
    plan_path: Path,
    images: tuple[Path, ...],
    prompt: str,
    model: str | None,
    max_new_tokens: int,
    dense: bool,
    overlay: Path | None,
    loading_options: LoadOptions,
) -> None:
    """Answer a prompt about an image under a plan.

    PLAN is applied to the model that it names, or to --model. The answer goes to stdout, visual tokens per layer to
    stderr.
    """
    from calibrate.inputs.encode import Encoder, to_device
    from calibrate.inputs.identity import identify
    from calibrate.inputs.samples import Sample
    from calibrate.running.execute import generate
    from planner.errors import InputError
    from planner.plan import load_plan

    plan = load_plan(plan_path)
    for image in images:
        if not image.is_file():
            raise InputError(f"there is no image {image}", "Check --image")
    loaded = load_for(plan.model.id, model, loading_options)
    known = identify(loaded.model, loaded.id)
    encoder = Encoder(loaded.processor, known.visual_ids)
    inputs = to_device(encoder([Sample(images, prompt, where="the prompt")]), loaded.model)
    if dense:
        click.echo(f"dense:   {encoder.decode(generate(loaded.model, inputs, max_new_tokens))[0]}", err=True)
    with plan.apply(loaded.model) as handle:
        answer = encoder.decode(generate(loaded.model, inputs, max_new_tokens))[0]
        click.echo(answer)
        report, kept = handle.report, handle.kept
    if report is not None:
        click.echo(f"visual tokens per layer: {_runs([layer[0] for layer in report.visual])}", err=True)
    if overlay is not None:
        choices = [
            (title, positions[0])
            for (title, of), positions in zip(_titles(plan.decision.schedule), kept, strict=True)
            if of == "visual" and positions[0]
        ]
        _draw(overlay, images, inputs, known, choices)


def _runs(counts: list[int]) -> str:
    """``144 x 4, 20 x 3, 0 x 3``."""
    parts: list[list[int]] = []
    for count in counts:
        if parts and parts[-1][0] == count:
            parts[-1][1] += 1
        else:
            parts.append([count, 1])
    return ", ".join(f"{count} x {layers}" for count, layers in parts)


def _titles(schedule: Any) -> list[tuple[str, str]]:
    """Where each selection happens and what it chooses from, in the order of `schedule.selects`."""
    entry = [] if schedule.entry is None else [("before layer 0", schedule.entry.of)]
    inner = [(f"after layer {stage.last - 1}", select.of) for stage in schedule.stages for select in stage.selects]
    return entry + inner


def _draw(path: Path, images: tuple[Path, ...], inputs: Any, known: Any, choices: list[tuple[str, list[int]]]) -> None:
    import io

    from PIL import Image

    from planner.document import write_atomic
    from planner.errors import InputError
    from planner.report.overlay import draw_overlay, grid_of, side_by_side

    if len(images) != 1:
        raise InputError("--overlay draws one image", "Give one --image")
    visual = sum(int((inputs["input_ids"] == token).sum()) for token in known.visual_ids)
    thw = inputs["image_grid_thw"][0].tolist() if "image_grid_thw" in inputs else None
    grid = grid_of(visual, thw, known.spec.images.merge if known.spec.images else 1)
    picture = Image.open(images[0])
    pictures = [("the image", draw_overlay(picture, grid, range(visual)))]
    for title, positions in choices:
        pictures.append((f"{title}: {len(positions)} of {visual}", draw_overlay(picture, grid, positions)))
    stream = io.BytesIO()
    side_by_side(pictures).save(stream, format="PNG")
    write_atomic(path, stream.getvalue())
    click.echo(f"wrote {path}", err=True)
