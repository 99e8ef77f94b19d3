"""`plan freeze`: a plan for a given policy and a profiled model."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.completion import PLAN, policies
from planner.cli.words import Verb, output


@click.command(
    "freeze",
    cls=Verb,
    examples=[
        "plan freeze profile.json --policy diverse:keep=0.25",
        "plan freeze reference/windowed --policy prellm:keep=0.5+vtw:k=6 -o two.json",
    ],
)
@click.argument("profile_path", metavar="PROFILE", type=click.Path(path_type=Path), shell_complete=PLAN)
@click.option(
    "--policy",
    required=True,
    shell_complete=policies(),
    help="Policy, spelled as in `plan report`: visipruner:filter=3,keep=20,exit=7.",
)
@click.option(
    "--context-tokens",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Tokens of long context before the question, beside those of the profile's prompts.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of random selections.")
@output("Where the plan goes.", "plan.json")
def command(profile_path: Path, policy: str, context_tokens: int, seed: int, out: Path) -> None:
    """Write a plan for a policy of your choice.

    The plan applies --policy to the model of PROFILE and states the predicted cost. Its accuracy is not measured, and
    the plan says so; `plan calibrate` measures it. Parameters that a policy takes from the profile (context:rate=auto)
    are written into the plan as values.
    """
    from planner.plan import Decision, Plan, created_with, predict
    from planner.policies import parse
    from planner.profile import Profile
    from planner.report.plan_view import describe
    from planner.spec import ModelSpec
    from planner.workload import Workload

    profile = Profile.load(profile_path)
    spec = ModelSpec.from_config(profile.model.config)
    prompt = profile.prompt.model_dump()
    prompt["text_tokens"] += context_tokens
    workload = Workload(**prompt, context_tokens=context_tokens)
    chosen = parse(policy).resolve(spec, workload, profile)
    schedule = chosen.schedule(spec, workload, profile)
    plan = Plan(
        model=profile.model,
        decision=Decision(policy=str(chosen), schedule=schedule, seed=seed),
        prediction=(predict(spec, workload, schedule),),
        processor=profile.processor,
        created_with=created_with(),
    ).sealed()
    plan.save(out)
    click.echo(describe(plan))
    click.echo(f"wrote {out}", err=True)
