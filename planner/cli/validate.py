"""`plan validate`: is this plan whole, and does it fit this model?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("validate")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--model", help="Also check that it fits this model: config.json, model directory or shipped name.")
def command(plan_path: Path, model: str | None) -> None:
    """Check that PLAN is whole, unedited and of a known schema; with --model, that it fits."""
    from planner.plan import load_plan

    plan = load_plan(plan_path)
    model_text = f"{plan.model.id} ({plan.model.layers} layers)"
    click.echo(f"{plan_path}: valid plan for {model_text}, policy {plan.decision.policy}")
    if model is not None:
        plan.check(model)
        click.echo(f"{plan_path}: fits {model}")
