"""`plan export`: a plan as an inference engine is told of it."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.completion import PLAN, engines, names
from planner.cli.words import Verb, output


@click.command(
    "export",
    cls=Verb,
    examples=[
        "plan export plan.json --to vllm",
        "plan export plan.json --to openvino -o openvino.json",
    ],
)
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path), shell_complete=PLAN)
@click.option(
    "--to",
    "name",
    required=True,
    shell_complete=names(engines),
    help="vllm, openvino, trt-edge, llamacpp or transformers.",
)
@output("Where the document goes. [default: ENGINE.json]")
def command(plan_path: Path, name: str, out: Path | None) -> None:
    """Hand a plan to an inference engine.

    Writes a JSON document that says how the engine is told of PLAN (flags, environment, plugin, versions) and what is
    lost on the way. The ready command goes to stdout. A plan that the engine cannot carry is refused; the nearest one
    that it can is named, if one was measured.
    """
    from calibrate.inputs import bundled
    from planner.engines import engine, hand_over
    from planner.hub import reference
    from planner.plan import load_plan
    from planner.text import printable

    plan = load_plan(plan_path)
    model = bundled.reference(plan.model.id)  # whose name an engine does not know
    place = str(reference(plan_path) or plan_path)
    told = hand_over(plan, engine(name), place, None if model is None else model.model)
    target = Path(f"{name}.json") if out is None else out
    told.save(target)
    click.echo(told.command)
    installed = told.versions + (f" with {told.plugin}" if told.plugin else "")
    how = "as it was made" + (", but:" if told.lost else "")
    click.echo(f"wrote {target}: {installed} carries the plan {how}", err=True)
    for loss in told.lost:
        click.echo(printable(f"  {loss}"), err=True)
