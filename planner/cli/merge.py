"""`plan merge`: merge the shards of a calibration."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.words import option


@click.command("merge")
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "-o",
    "--output",
    "out",
    aliases=["--out"],
    type=click.Path(path_type=Path),
    default=Path("profile.json"),
    show_default=True,
    help="Where the profile goes.",
)
def command(shards: tuple[Path, ...], out: Path) -> None:
    """Merge the shards of a calibration.

    SHARDS are the states that `plan calibrate --shard i/n` writes. The result is the profile that one process would
    have made; `plan calibrate MODEL --profile PROFILE` then decides on a plan.
    """
    from calibrate.measuring.run import merge_states

    profile = merge_states(shards)
    profile.save(out)
    click.echo(f"wrote {out}: {profile.samples.n} samples, probes {', '.join(profile.probes)}", err=True)
    click.echo(f"decide on a plan with `plan calibrate MODEL --profile {out}` and the same samples", err=True)
