"""`plan validate`: is this plan complete and unchanged, and does it fit this model?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("validate")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--model", help="Model that the plan must fit: config.json, model directory or shipped name.")
def command(plan_path: Path, model: str | None) -> None:
    """Check a plan's schema, digest and model.

    PLAN must be complete, of a known schema and unchanged since it was written; with --model it must also fit that
    model.
    """
    from planner.plan import load_plan

    plan = load_plan(plan_path)
    model_text = f"{plan.model.id} ({plan.model.layers} layers)"
    click.echo(f"{plan_path}: valid plan for {model_text}, policy {plan.decision.policy}")
    if model is not None:
        plan.check(model)
        click.echo(f"{plan_path}: fits {model}")
