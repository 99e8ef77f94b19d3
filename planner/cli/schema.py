"""`plan schema`: the JSON Schema of a document."""

from __future__ import annotations

import click

from planner.cli.words import Verb


@click.command("schema", cls=Verb, examples=["plan schema plan > plan.schema.json"])
@click.argument(
    "document", metavar="[plan|profile|export]", type=click.Choice(["plan", "profile", "export"]), default="plan"
)
def command(document: str) -> None:
    """Print the JSON Schema of a plan, profile or export.

    The default is that of a plan; an export is what `plan export` writes.
    """
    from planner.document import Document, canonical
    from planner.engines import Handover
    from planner.plan import Plan
    from planner.profile import Profile

    models: dict[str, type[Document]] = {"plan": Plan, "profile": Profile, "export": Handover}
    model = models[document]
    click.echo(canonical(model.model_json_schema()), nl=False)
