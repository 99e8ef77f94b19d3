"""Train the reference models, measure them and write their cards."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from .card import write_card
from .evaluate import evaluate
from .stages import pick_device, run_stage


@click.command()
@click.option("--variant", type=click.Choice(["both", "plain", "windowed"]), default="both", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reference-models"), show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ...")
@click.option("--steps-scale", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--images", type=click.IntRange(min=1), help="Use the first so many images only, to try things out.")
def main(variant: str, out: Path, device: str, steps_scale: float, seed: int, images: int | None) -> None:
    """Train the reference models into OUT/plain and OUT/windowed; the windowed one starts from OUT/plain."""
    target = pick_device(device)
    stages = {"both": ["tower", "plain", "windowed"], "plain": ["tower", "plain"], "windowed": ["windowed"]}[variant]
    for stage in stages:
        try:
            folder = run_stage(stage, out, target, steps_scale, seed, images)
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from error
        if stage == "tower":
            continue
        write_card(folder, evaluate(folder, target, images))
        click.echo(f"{folder}: {(folder / 'README.md').stat().st_size} bytes of model card, measured and written")
    # Kept only for the plain stage to start from.
    shutil.rmtree(out / "tower", ignore_errors=True)


if __name__ == "__main__":
    main()
