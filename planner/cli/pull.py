"""`plan pull`: a plan from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("pull")
@click.argument("repository", metavar="REPO")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("plan.json"),
    show_default=True,
    help="Where the plan goes.",
)
@click.option("--profile", "profile_path", type=click.Path(path_type=Path), help="Where its profile goes.")
def command(repository: str, out: Path, profile_path: Path | None) -> None:
    """Pull a plan from the Hugging Face Hub.

    REPO is user/repo, user/repo@revision or hf://user/repo@revision. The plan is checked before it is written.
    """
    from planner.hub import PROFILE, TABLES, fetch, holds
    from planner.hub import repository as named
    from planner.plan import load_plan
    from planner.profile import Profile

    where = named(repository)
    plan = load_plan(fetch(where))
    plan.save(out)
    click.echo(f"wrote {out}: {plan.decision.policy} for {plan.model.id}", err=True)
    if profile_path is None:
        return
    if holds(where, TABLES):
        fetch(where, TABLES)  # beside the profile, in the cache
    profile = Profile.load(fetch(where, PROFILE))
    profile.save(profile_path)
    click.echo(f"wrote {profile_path}: {profile.samples.n} samples", err=True)
