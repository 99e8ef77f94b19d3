"""`plan push`: a plan to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.completion import PLAN
from planner.cli.words import Verb


@click.command(
    "push",
    cls=Verb,
    examples=[
        "plan push plan.json team/plans --profile profile.json",
        "plan push plan.json team/plans@draft --private",
    ],
)
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path), shell_complete=PLAN)
@click.argument("repository", metavar="REPO")
@click.option("--profile", "profile_path", type=click.Path(path_type=Path), help="Push this profile along.")
@click.option("--private", is_flag=True, help="Make the repository private, if there is none yet.")
@click.option("-m", "--message", help="Commit message. [default: names the policy]")
def command(plan_path: Path, repository: str, profile_path: Path | None, private: bool, message: str | None) -> None:
    """Push a plan to the Hugging Face Hub.

    PLAN goes into REPO, user/repo or user/repo@branch, with a model card that holds its evidence. Whoever may read it
    uses it as hf://user/repo wherever a plan is taken.
    """
    from planner.document import canonical
    from planner.hub import CARD, PLAN, PROFILE, TABLES, push
    from planner.hub import repository as named
    from planner.plan import load_plan
    from planner.profile import Profile
    from planner.report.card import card

    where = named(repository)
    plan = load_plan(plan_path)
    files = {PLAN: canonical(plan.content()).encode(), CARD: card(plan, where).encode()}
    if profile_path is not None:
        profile = Profile.load(profile_path)
        files[PROFILE] = canonical(profile.content()).encode()
        if profile.arrays and profile.tables is not None:
            files[TABLES] = profile.tables.read_bytes()
    url = push(where, files, message or f"{plan.decision.policy} for {plan.model.id}", private)
    click.echo(str(where))
    click.echo(f"wrote {', '.join(files)}: {url}", err=True)
