"""`plan merge`: merge the shards of a calibration or of an evaluation."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.words import Verb, output


@click.command(
    "merge",
    cls=Verb,
    examples=[
        "plan merge calibration/*.state.safetensors -o profile.json",
        "plan merge evaluation-*.json",
    ],
)
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
@output("Where the profile of a calibration goes.", "profile.json")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "md", "json"]),
    default="table",
    show_default=True,
    help="How an evaluation is printed.",
)
def command(shards: tuple[Path, ...], out: Path, fmt: str) -> None:
    """Merge the shards of a calibration or an evaluation.

    SHARDS are the states that `plan calibrate --shard i/n` writes. The result is the profile that one process would
    have made; `plan calibrate MODEL --profile PROFILE` then decides on a plan.

    Or they are the JSON files of `plan evaluate --shard i/n`, whose tables are printed as one process would have.
    """
    if all(path.suffix == ".json" for path in shards):
        from calibrate.deciding.evaluation_shards import merged
        from planner.cli.evaluate import show

        show(merged(shards), fmt)
        return
    from calibrate.measuring.run import merge_states

    profile = merge_states(shards)
    profile.save(out)
    click.echo(f"wrote {out}: {profile.samples.n} samples, probes {', '.join(profile.probes)}", err=True)
    click.echo(f"decide on a plan with `plan calibrate MODEL --profile {out}` and the same samples", err=True)
