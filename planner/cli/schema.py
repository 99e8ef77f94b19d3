"""`plan schema`: the JSON Schema of a document."""

from __future__ import annotations

import click


@click.command("schema")
@click.argument("document", metavar="[plan|profile]", type=click.Choice(["plan", "profile"]), default="plan")
def command(document: str) -> None:
    """Print the JSON Schema of a plan or profile.

    The default is that of a plan.
    """
    from planner.document import canonical
    from planner.plan import Plan
    from planner.profile import Profile

    model = Plan if document == "plan" else Profile
    click.echo(canonical(model.model_json_schema()), nl=False)
