"""`plan run`: answer a prompt about an image with a plan applied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.completion import MODEL, PLAN
from planner.cli.options import fits, load_for, loading, other_weights
from planner.cli.words import Verb

if TYPE_CHECKING:
    from calibrate.inputs.load_options import LoadOptions


@click.command(
    "run",
    cls=Verb,
    examples=[
        'plan run plan.json --image photo.jpg --prompt "What is this?"',
        'plan run plan.json --image photo.jpg --prompt "What is this?" --dense --overlay kept.png',
    ],
)
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path), shell_complete=PLAN)
@click.option(
    "--image", "images", type=click.Path(path_type=Path), multiple=True, required=True, help="Image file; repeatable."
)
@click.option("--prompt", required=True, help="Question about the image.")
@click.option("--model", shell_complete=MODEL, help="Hub id or directory. [default: the model that the plan names]")
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Longest answer.")
@click.option("--dense", is_flag=True, help="Also answer without the plan, for comparison.")
@click.option("--overlay", type=click.Path(path_type=Path), help="Write a PNG of the patches that the plan kept.")
@other_weights
@loading
def command(
    plan_path: Path,
    images: tuple[Path, ...],
    prompt: str,
    model: str | None,
    max_new_tokens: int,
    dense: bool,
    overlay: Path | None,
    allow_other_weights: bool,
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
    from planner.files import is_file
    from planner.plan import load_plan
    from planner.report.tables import layer_runs
    from planner.runtime import attach
    from planner.text import printable

    if overlay is not None and len(images) != 1:
        raise click.UsageError("--overlay draws one image: give one --image")
    plan = load_plan(plan_path)
    for image in images:
        if not is_file(image):
            raise InputError(f"there is no image {image}", "Check --image")
    loaded = load_for(plan.model.id, model, loading_options)
    known = identify(loaded.model, loaded.id)
    encoder = Encoder(loaded.processor, known.visual_ids)
    fits(plan, loaded, encoder, allow_other_weights)
    sample = Sample(images, prompt, where="the prompt")
    inputs = to_device(encoder([sample]), loaded.model)
    grid = None if overlay is None else _grid(inputs, known)
    if dense:
        answer = encoder.decode(generate(loaded.model, inputs, max_new_tokens))[0]
        click.echo(f"dense:   {printable(answer)}", err=True)
    with attach(loaded.model, plan.decision.schedule, seed=plan.decision.seed) as handle:
        answer = encoder.decode(generate(loaded.model, inputs, max_new_tokens))[0]
        click.echo(printable(answer))
        report, kept = handle.report, handle.kept
    if report is not None:
        click.echo(f"visual tokens per layer: {layer_runs([layer[0] for layer in report.visual])}", err=True)
    if overlay is not None and grid is not None:
        choices = [
            (title, positions[0])
            for (title, of), positions in zip(_titles(plan.decision.schedule), kept, strict=True)
            if of == "visual" and positions[0]
        ]
        _draw(overlay, sample.pictures()[0], grid, choices)


def _titles(schedule: Any) -> list[tuple[str, str]]:
    """Where each selection happens and what it chooses from, in the order of `schedule.selects`."""
    entry = [] if schedule.entry is None else [("before layer 0", schedule.entry.of)]
    inner = [(f"after layer {stage.last - 1}", select.of) for stage in schedule.stages for select in stage.selects]
    return entry + inner


def _grid(inputs: Any, known: Any) -> tuple[int, int]:
    """Rows and columns of the image's visual tokens.

    Raises:
        InputError: they do not form one grid; said before anything is generated.
    """
    from planner.report.overlay import grid_of

    visual = sum(int((inputs["input_ids"] == token).sum()) for token in known.visual_ids)
    thw = inputs["image_grid_thw"][0].tolist() if "image_grid_thw" in inputs else None
    rule = known.spec.images
    if rule and rule.kind == "shrink" and "image_sizes" in inputs:  # Pixtral's processor tells pixels
        thw = [1, *(side // rule.patch for side in inputs["image_sizes"][0].tolist())]
    return grid_of(visual, thw, rule.merge if rule else 1, rule.tile_tokens if rule else 0)


def _draw(path: Path, picture: Any, grid: tuple[int, int], choices: list[tuple[str, list[int]]]) -> None:
    import io

    from planner.document import write_atomic
    from planner.report.overlay import draw_overlay, side_by_side

    visual = grid[0] * grid[1]
    pictures = [("the image", draw_overlay(picture, grid, range(visual)))]
    for title, positions in choices:
        pictures.append((f"{title}: {len(positions)} of {visual}", draw_overlay(picture, grid, positions)))
    stream = io.BytesIO()
    side_by_side(pictures).save(stream, format="PNG")
    write_atomic(path, stream.getvalue())
    click.echo(f"wrote {path}", err=True)
