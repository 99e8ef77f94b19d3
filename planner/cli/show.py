"""`plan show`: a plan or a profile for a reader."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("show")
@click.argument("path", metavar="PLAN|PROFILE", type=click.Path(path_type=Path))
@click.option("--format", "fmt", type=click.Choice(["table", "md", "json", "html"]), default="table", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to a file.")
def command(path: Path, fmt: str, output: Path | None) -> None:
    """Print what PLAN does, saves and was measured to keep, or what PROFILE measured, probe by probe.

    As html, a page with pictures: the report that `plan calibrate` writes.
    """
    from planner.document import read_json, write_atomic

    body = read_json(path)
    is_profile = isinstance(body, dict) and "profile_sha256" in body
    text = _profile(path, fmt) if is_profile else _plan(path, fmt)
    if output is None:
        click.echo(text, nl=False)
        return
    write_atomic(output, text)
    click.echo(f"Wrote {output}", err=True)


def _plan(path: Path, fmt: str) -> str:
    from planner.document import canonical
    from planner.plan import load_plan

    plan = load_plan(path)
    if fmt == "json":
        return canonical(plan.content())
    if fmt == "html":
        from planner.report.page import page

        return page(plan)
    from planner.report.plan_view import describe

    return describe(plan, fmt) + "\n"


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
