"""`plan validate`: is this plan complete and unchanged, and does it fit this model?"""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.completion import PLAN, bundled_models, names, shipped_models
from planner.cli.options import other_weights
from planner.cli.words import Verb


@click.command(
    "validate",
    cls=Verb,
    examples=[
        "plan validate plan.json",
        "plan validate plan.json --model path/to/model --full-digest",
    ],
)
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path), shell_complete=PLAN)
@click.option(
    "--model",
    shell_complete=names(shipped_models, bundled_models, files=True),
    help="Model that the plan must fit: a directory, a hub id, or a config.json or shipped name without weights.",
)
@click.option("--full-digest", is_flag=True, help="Compare every byte of the weights with the digest in PLAN.")
@other_weights
def command(plan_path: Path, model: str | None, full_digest: bool, allow_other_weights: bool) -> None:
    """Check a plan's schema, digest and model.

    PLAN must be complete, of a known schema and unchanged since it was written; with --model it must also fit that
    model.

    Of a directory with weights, and of a bundled model, these are loaded and compared, too; of a hub id only with
    --full-digest.
    """
    from calibrate.inputs.bundled import model_folder, reference
    from planner.errors import InputError
    from planner.plan import load_plan
    from planner.report.hub import hub_folder, is_hub_id
    from planner.text import printable

    if full_digest and model is None:
        raise click.UsageError("--full-digest needs --model")
    plan = load_plan(plan_path)
    bound = "" if plan.model.weights is not None else "; it is not bound to weights (made before plans were)"
    proven = "" if plan.proven or plan.decision.schedule.empty else "; what it keeps is not proven (`plan show`)"
    about = f"valid plan for {plan.model.id} ({plan.model.layers} layers), policy {plan.decision.policy}{bound}{proven}"
    click.echo(printable(f"{plan_path}: {about}"))
    if model is None:
        return
    known = reference(model)
    source = model if known is None else str(model_folder(known))
    on_hub = is_hub_id(source)
    plan.check(hub_folder(source) if on_hub else source)
    if not (full_digest if on_hub else _has_weights(source)):
        if full_digest:
            raise InputError(f"{model} has no weights to compare", "Give a model directory")
        why = "its weights were not loaded (--full-digest does)" if on_hub else "there are no weights to compare"
        click.echo(f"{plan_path}: fits the configuration of {model}; {why}")
        return
    from calibrate.inputs.load import load

    if full_digest and (plan.model.weights is None or plan.model.weights.full_sha256 is None):
        raise InputError("the plan has no digest over all bytes", "Calibrate with --full-digest")
    note = plan.check_model(load(model).model, allow_other_weights, full_digest)
    click.echo(printable(f"{plan_path}: fits {model}" + (f"; {note}" if note else ", weights included")))


def _has_weights(model: str) -> bool:
    folder = Path(model)
    return folder.is_dir() and any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir())
