"""`plan run`: answer a prompt about an image with a plan applied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.completion import MODEL, PLAN
from planner.cli.options import fits, load_for, loading, other_weights
from planner.cli.words import Verb

if TYPE_CHECKING:
    from PIL.Image import Image

    from calibrate.inputs.load_options import LoadOptions
    from planner.report.samples import Kept


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
@click.option("--overlay", type=click.Path(path_type=Path), help="Draw the patches that the plan kept into a PNG.")
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
    from calibrate.running.patches import grid, kept_patches, seen
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
    places = None if overlay is None else grid(inputs, known)
    said = [("question", prompt)]
    if dense:
        answer = encoder.decode(generate(loaded.model, inputs, max_new_tokens))[0]
        said.append(("dense", answer))
        click.echo(f"dense:   {printable(answer)}", err=True)
    with attach(loaded.model, plan.decision.schedule, seed=plan.decision.seed) as handle:
        answer = encoder.decode(generate(loaded.model, inputs, max_new_tokens))[0]
        click.echo(printable(answer))
        report, kept = handle.report, handle.kept
    if report is not None:
        click.echo(f"visual tokens per layer: {layer_runs([layer[0] for layer in report.visual])}", err=True)
    if overlay is not None and places is not None:
        picture = seen(sample.pictures()[0], loaded.processor)
        _draw(
            overlay,
            picture,
            places,
            kept_patches(plan.decision.schedule, kept, places),
            [*said, (plan.decision.policy, answer)],
        )


def _draw(
    path: Path, picture: Image, places: tuple[int, int], stages: Sequence[Kept], said: Sequence[tuple[str, str]]
) -> None:
    """Question and answers above the picture, whole and with what each stage kept."""
    import io

    from planner.document import write_atomic
    from planner.report.overlay import draw_overlay, side_by_side
    from planner.text import printable

    pictures = [("the image", draw_overlay(picture, (1, 1), [0]))]
    pictures += [(one.caption, draw_overlay(picture, places, one.patches)) for one in stages]
    stream = io.BytesIO()
    side_by_side(pictures, [f"{who}: {printable(what)}" for who, what in said]).save(stream, format="PNG")
    write_atomic(path, stream.getvalue())
    click.echo(f"wrote {path}", err=True)
