"""Command line: draw the pictures, train, and rebuild the model's folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file

from ..stages import pick_device
from .base import BaseModelError, load_base
from .build import save_folder
from .card import CHECKSUM, ship
from .loop import Clock
from .pairs import draw_pairs
from .run import RECIPES, Paths, Run
from .samples import draw_all
from .sprites import SpriteError, load_sprites, pack_sprites

SHIPPED = Path(__file__).resolve().parents[2] / "pretrained"
WORK = Path("reference-models")
_path = click.Path(path_type=Path)
_base = click.option(
    "--wheel", "base", type=_path, help="Wheel or GGUF of the language model; left out, pip fetches it."
)
_sprites = click.option("--sprites", type=_path, default=WORK / "sprites.safetensors", show_default=True)


@click.group(context_settings={"show_default": True})
def main() -> None:
    """The pretrained reference model: SmolLM2-135M-Instruct with a small vision tower."""


@main.command("sprites")
@_sprites
@click.option("--cache", type=_path, help="Keep the fetched archives here.")
def sprites_command(sprites: Path, cache: Path | None) -> None:
    """Fetch the drawings (npm, PyPI) and pack them into one file."""
    try:
        pack_sprites(sprites, cache)
    except SpriteError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{sprites}: {sprites.stat().st_size} bytes")


@main.command("samples")
@_sprites
@click.option("--out", type=_path, default=SHIPPED, help="Folder of the sample sets.")
def samples_command(sprites: Path, out: Path) -> None:
    """Draw the calibration, evaluation and held-out sets."""
    for name, rows in draw_all(_drawn(sprites), out).items():
        click.echo(f"{name}: {len(rows)} samples about {len({row.image for row in rows})} pictures")


@main.command("pairs")
@_sprites
@click.option("--out", type=_path, default=SHIPPED, help="Folder of the sample sets.")
def pairs_command(sprites: Path, out: Path) -> None:
    """Draw the set of look-alikes: pairs of things, each in every style."""
    rows = draw_pairs(_drawn(sprites), out)
    click.echo(f"pairs: {len(rows)} samples of {len({row.scene for row in rows})} pairs")


def _drawn(sprites: Path) -> torch.Tensor:
    try:
        return load_sprites(sprites)
    except SpriteError as error:
        raise click.ClickException(str(error)) from error


@main.command("train")
@_base
@_sprites
@click.option("--samples", type=_path, default=SHIPPED, help="Folder of the sample sets.")
@click.option("--out", type=_path, default=WORK / "pretrained-training", help="Where difference, log and figures go.")
@click.option("--state", type=_path, help="Where a run that was cut off is resumed from; OUT/state if left out.")
@click.option("--recipe", "recipe_name", type=click.Choice(list(RECIPES)), default="gpu")
@click.option("--tower-steps", type=click.IntRange(1))
@click.option("--tower-batch", type=click.IntRange(1))
@click.option("--language-steps", type=click.IntRange(1))
@click.option("--language-batch", type=click.IntRange(1))
@click.option("--tower-seconds", type=float, help="Choose the number of steps that takes about so long here.")
@click.option("--language-seconds", type=float, help="Likewise.")
@click.option("--stages", type=click.Choice(["both", "tower", "language"]), default="both")
@click.option("--device", default="auto", help="auto, cpu, cuda, ...")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16")
@click.option("--seed", type=int, default=0)
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes that draw layouts and questions ahead.")
@click.option("--max-seconds", type=float, help="End early, with what is there, after so long.")
@click.option("--judge-pictures", type=click.IntRange(1), help="Judge by the first so many pictures of a set only.")
def train_command(
    base: Path | None,
    sprites: Path,
    samples: Path,
    out: Path,
    state: Path | None,
    recipe_name: str,
    stages: str,
    device: str,
    dtype: str,
    seed: int,
    workers: int,
    max_seconds: float | None,
    judge_pictures: int | None,
    **lengths: float | None,
) -> None:
    """Train; go on where a run with the same OUT and STATE was cut off."""
    given: dict[str, Any] = {key: value for key, value in lengths.items() if value is not None}
    recipe = replace(RECIPES[recipe_name], **given)
    paths = Paths(base, sprites, samples, out, state or out / "state")
    try:
        run = Run(
            paths, recipe, pick_device(device), getattr(torch, dtype), seed, workers, Clock(max_seconds), judge_pictures
        )
    except (BaseModelError, SpriteError) as error:
        raise click.ClickException(str(error)) from error
    if stages == "language":
        try:
            run.load_tower()
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from error
    if (stages == "language" or run.train_tower()) and stages != "tower":
        run.train_language()
    result = run.judge()
    click.echo(json.dumps({name: figures["all"] for name, figures in result.items()}))
    click.echo(json.dumps(result["evaluation"]["kind"]))


@main.command("rebuild")
@_base
@click.option("--delta", type=_path, default=SHIPPED / "delta.safetensors", help="The shipped difference.")
@click.option("--out", type=_path, default=WORK / "pretrained", help="Folder for the model.")
def rebuild_command(base: Path | None, delta: Path, out: Path) -> None:
    """Rebuild the model's folder from the language model and the shipped difference."""
    if not delta.is_file():
        raise click.ClickException(f"{delta} does not exist: name the difference with --delta, or train one")
    try:
        found = save_folder(load_base(base), load_file(delta), out)
    except BaseModelError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: weights have SHA-256 {found}")
    expected = delta.with_name(CHECKSUM)
    if expected.is_file() and expected.read_text(encoding="utf-8").split()[0] != found:
        raise click.ClickException(f"that is not the checksum in {expected}: these are other weights")


@main.command("ship")
@_base
@click.option("--training", type=_path, default=WORK / "pretrained-training", help="Output of a training run.")
@click.option("--folder", type=_path, default=SHIPPED, help="Folder to ship; it holds the samples already.")
@click.option("--out", type=_path, default=WORK / "pretrained", help="Folder for the rebuilt model.")
@click.option("--check", type=click.IntRange(1), default=60, help="Samples that `generate` answers, to compare.")
def ship_command(base: Path | None, training: Path, folder: Path, out: Path, check: int) -> None:
    """Put a training run's result into the folder that is shipped, with checksum and model card."""
    try:
        found = ship(training, load_base(base), folder, out, check)
    except BaseModelError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder}: weights of {out} have SHA-256 {found}")


if __name__ == "__main__":
    main()
