"""`plan show`: a plan or a profile as text, JSON or HTML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.completion import PLAN
from planner.cli.words import Verb

if TYPE_CHECKING:
    from planner.plan import Plan
    from planner.profile import Profile


@click.command(
    "show",
    cls=Verb,
    examples=[
        "plan show calibration                                    # the plan in a folder",
        "plan show plan.json --format md",
        "plan show plan.json --profile profile.json --format html -o report.html",
    ],
)
@click.argument("path", metavar="PLAN|PROFILE", type=click.Path(path_type=Path), shell_complete=PLAN)
@click.option(
    "--profile", "beside", type=click.Path(path_type=Path), help="Also show this profile, from which PLAN was derived."
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "md", "json", "html"]),
    default="table",
    show_default=True,
    help="Plain text, Markdown, JSON (the file itself) or an HTML page with pictures.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this file instead of stdout.")
def command(path: Path, beside: Path | None, fmt: str, output: Path | None) -> None:
    """Print a plan or a profile.

    Of a PLAN: the verdict, its stages, predicted cost and what was measured. Of a PROFILE: the findings of each probe.
    As HTML, the report that `plan calibrate` writes.
    """
    from planner.bundled import bundled
    from planner.document import read_json, write_atomic
    from planner.files import document_in
    from planner.hub import local, reference

    given, path = path, document_in(bundled(local(path), "plan"))
    name = str(path if given.exists() else reference(given) or given)  # as it can be given again
    body = read_json(path)
    is_profile = isinstance(body, dict) and "profile_sha256" in body
    if beside is not None and (is_profile or fmt == "json"):
        raise click.UsageError("--profile needs a PLAN and the format table, md or html")
    text = _profile(path, fmt) if is_profile else _plan(path, name, beside, fmt)
    if output is None:
        click.echo(text, nl=False)
        return
    write_atomic(output, text)
    click.echo(f"Wrote {output}", err=True)


def _plan(path: Path, name: str, beside: Path | None, fmt: str) -> str:
    """A plan as text.

    Args:
        name: what the commands that it suggests call it.
    """
    from planner.document import canonical
    from planner.plan import load_plan

    plan = load_plan(path)
    profile = None if beside is None else _source(plan, beside)
    if fmt == "json":
        return canonical(plan.content())
    if fmt == "html":
        from planner.report.page import page

        return page(plan, profile, path=name)
    from planner.report.plan_view import describe
    from planner.report.profile_view import describe_profile

    parts = [describe(plan, fmt, name)] + ([] if profile is None else [describe_profile(profile, fmt)])
    return "\n\n".join(parts) + "\n"


def _source(plan: Plan, path: Path) -> Profile:
    """The profile that a plan was derived from.

    Raises:
        PlanMismatchError: it was derived from another.
    """
    from planner.errors import PlanMismatchError
    from planner.profile import Profile

    profile = Profile.load(path)
    if plan.evidence is None or plan.evidence.profile_sha256 != profile.profile_sha256:
        raise PlanMismatchError(
            f"the plan was not derived from {path}", "Give the profile.json that was written along with the plan"
        )
    return profile


def _profile(path: Path, fmt: str) -> str:
    from planner.document import canonical
    from planner.profile import Profile

    profile = Profile.load(path)
    if fmt == "json":
        return canonical(profile.content())
    if fmt == "html":
        from planner.report.page import profile_page

        return profile_page(profile)
    from planner.report.profile_view import describe_profile

    return describe_profile(profile, fmt) + "\n"
