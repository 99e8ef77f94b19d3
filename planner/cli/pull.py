"""`plan pull`: a plan from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.words import Verb, output


@click.command(
    "pull",
    cls=Verb,
    examples=[
        "plan pull team/plans",
        "plan pull team/plans@v1 -o plan.json --profile profile.json",
    ],
)
@click.argument("repository", metavar="REPO")
@output("Where the plan goes.", "plan.json")
@click.option("--profile", "profile_path", type=click.Path(path_type=Path), help="Where its profile goes.")
def command(repository: str, out: Path, profile_path: Path | None) -> None:
    """Pull a plan from the Hugging Face Hub.

    REPO is user/repo, user/repo@revision or hf://user/repo@revision. The plan is checked before it is written.
    """
    from planner.hub import fetch, fetch_profile
    from planner.hub import repository as named
    from planner.plan import load_plan
    from planner.profile import Profile

    where = named(repository)
    plan = load_plan(fetch(where))
    plan.save(out)
    click.echo(f"wrote {out}: {plan.decision.policy} for {plan.model.id}", err=True)
    if profile_path is None:
        return
    profile = Profile.load(fetch_profile(where))
    profile.save(profile_path)
    click.echo(f"wrote {profile_path}: {profile.samples.n} samples", err=True)
