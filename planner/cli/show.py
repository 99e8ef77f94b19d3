"""`plan show`: a plan for a reader."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("show")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--format", "fmt", type=click.Choice(["table", "md", "json"]), default="table", show_default=True)
def command(plan_path: Path, fmt: str) -> None:
    """Print what PLAN does, what it saves, and what it was measured to keep."""
    from planner.document import canonical
    from planner.plan import load_plan
    from planner.report.plan_view import describe

    plan = load_plan(plan_path)
    click.echo(canonical(plan.content()) if fmt == "json" else describe(plan, fmt), nl=fmt != "json")
