"""`plan calibrate`: profile a model on samples, decide on a plan, measure what it keeps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.asked import MEASURE, asked
from planner.cli.completion import MODEL, PLAN
from planner.cli.config import configured, save
from planner.cli.logged import ANSWERS, log_answers
from planner.cli.options import MEASURING, SAMPLES, loading, max_new_tokens, sampling, shard_of
from planner.cli.words import Verb, again, option, output

if TYPE_CHECKING:
    from calibrate.deciding.demand import Demand
    from calibrate.deciding.objective import Objective
    from calibrate.inputs.load_options import LoadOptions
    from calibrate.pipeline.options import Options
    from calibrate.pipeline.run import Outcome
    from planner.plan import Plan


def _settings(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Typed by the probes' constructors; a wrong one is wrong usage."""
    if not values:
        return {}
    from calibrate.probes.settings import parse_settings
    from planner.errors import InputError

    try:
        return parse_settings(values)
    except InputError as error:
        raise click.BadParameter(str(error)) from error


@click.command(
    "calibrate",
    cls=Verb,
    examples=[
        "plan calibrate                                          # the bundled model: needs nothing",
        "plan calibrate MODEL --data samples.jsonl --eval-data others.jsonl -o out",
        "plan calibrate MODEL --data samples.jsonl --agreement 0.95 --max-flops 0.5",
        "plan calibrate --config out/run.yaml -o again           # an earlier run once more",
    ],
)
@click.argument("model", required=False, shell_complete=MODEL)
@configured
@option("--data", help="Calibration samples: JSONL, an image folder, or a datasets id.", group=SAMPLES)
@option("--eval-data", help="Samples for the final comparison, never used to decide.", group=SAMPLES)
@option(
    "--num-samples",
    aliases=["--limit"],
    type=click.IntRange(1),
    help="Draw this many calibration samples. [default: all]",
    group=SAMPLES,
)
@option(
    "--eval-samples", type=click.IntRange(1), help="Draw this many evaluation samples. [default: all]", group=SAMPLES
)
@option(
    "--batch-size",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Samples per forward pass.",
    group=MEASURING,
)
@option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draw and of random pruning.")
@option(
    "--probes",
    help="Probes to run, comma-separated, or all; see `plan ls probes`. [default: those that run by default there]",
    group=MEASURING,
)
@option(
    "--set",
    "settings",
    multiple=True,
    callback=_settings,
    metavar="PROBE.KEY=VALUE",
    help="Set an option of a probe, such as masking.samples=16; repeatable.",
    group=MEASURING,
)
@option(
    "--profile",
    type=click.Path(path_type=Path),
    shell_complete=PLAN,
    help="Decide from this profile of the same samples (see `plan merge`) instead of measuring.",
    group=MEASURING,
)
@asked
@max_new_tokens
@option(
    "--measure",
    type=click.IntRange(1),
    default=MEASURE,
    show_default=True,
    help="Schedules that the search may execute, at most; a plan may be cheaper with more.",
    group=MEASURING,
)
@option("--profile-only", is_flag=True, help="Measure only; decide on no plan.", group=MEASURING)
@option("--resume", is_flag=True, help="Continue an interrupted run from its state in --output.")
@option("--overwrite", is_flag=True, help="Overwrite what an earlier run left in --output.")
@option(
    "--full-digest",
    is_flag=True,
    help="Bind profile and plan to every byte of the weights, not to samples.",
    group=MEASURING,
)
@option(
    "--shard",
    default="0/1",
    show_default=True,
    callback=shard_of,
    help="Measure part i of n only; unite the parts with `plan merge`.",
    group=MEASURING,
)
@output("Folder for profile.json, plan.json and report.html.", "calibration")
@option(
    "--format",
    "fmt",
    type=click.Choice(["table", "md", "json"]),
    default="table",
    show_default=True,
    help="How the plan is printed.",
)
@option("--log-samples", is_flag=True, help="Write every evaluated answer, dense and planned, into answers.jsonl.")
@option("-v", "--verbose", is_flag=True, help="Print each candidate as it is tried.")
@sampling
@loading
def command(
    model: str | None,
    data: str | None,
    eval_data: str | None,
    image_column: str,
    prompt_column: str,
    answer_column: str,
    eval_samples: int | None,
    probes: str | None,
    settings: dict[str, dict[str, Any]],
    demand: Demand,
    objective: Objective,
    profile_only: bool,
    fmt: str,
    overwrite: bool,
    max_new_tokens: int,
    log_samples: bool,
    loading_options: LoadOptions,
    **rest: Any,
) -> None:
    """Measure a model, decide on a plan and evaluate it.

    The result is compared with the dense model, with controls and with FastV at equal FLOPs.

    MODEL is a hub id or a directory, or one of the bundled reference models with its samples: reference/windowed (the
    default), reference/plain, reference/pretrained. Writes profile.json, plan.json and report.html into --output and
    prints the comparison.

    Policies and their compositions are searched on few samples. A ladder of the best is frozen and tested on the
    others, which nothing has looked at. The plan is the cheapest of which is proven what is asked for.
    """
    from calibrate.inputs.samples import Columns
    from calibrate.pipeline.options import Options
    from calibrate.pipeline.run import calibrate_and_plan
    from calibrate.probes.base import DEFAULT, probe_names

    chosen = probe_names() if probes == "all" else tuple(probes.split(",")) if probes else DEFAULT
    measuring = {"--probes": probes, "--set": settings, "--profile-only": profile_only, "--resume": rest["resume"]}
    clash = [name for name, value in {**measuring, "--shard": rest["shard"] != (0, 1)}.items() if value]
    if rest["profile"] is not None and clash:
        raise click.UsageError(f"{', '.join(clash)} cannot be combined with --profile, which measures nothing")
    if rest["resume"] and overwrite:
        raise click.UsageError("--resume goes on with what --overwrite would replace: give one of them")
    if profile_only and log_samples:
        raise click.UsageError("--log-samples needs an evaluation, and --profile-only decides on nothing to evaluate")
    idle = [name for name in settings if name not in chosen]
    if idle:
        raise click.UsageError(f"--set names {', '.join(idle)}, which --probes does not select")
    options = Options(
        model=model,
        data=data,
        evaluation_data=eval_data,
        columns=Columns(image_column, prompt_column, answer_column),
        evaluation_samples=eval_samples,
        probes=chosen,
        settings=settings,
        demand=demand,
        objective=objective,
        decide=not profile_only,
        loading=loading_options,
        answer_tokens=max_new_tokens,
        **{name: rest[name] for name in _SAME},
    )
    with _claimed(click.get_current_context(), options, overwrite):
        outcome = calibrate_and_plan(options, lambda line: click.echo(line, err=True))
        if outcome.profile is not None:
            _write(options, outcome, fmt, log_samples)
        elif options.shard[1] > 1:
            click.echo(f"wrote this shard's state into {options.out}; unite all shards with `plan merge`", err=True)


#: Options that `Options` calls by the same name.
_SAME = (
    "full_digest",
    "measure",
    "prompt",
    "split",
    "num_samples",
    "batch_size",
    "seed",
    "profile",
    "resume",
    "shard",
    "out",
    "verbose",
)


@contextmanager
def _claimed(ctx: click.Context, options: Options, overwrite: bool) -> Iterator[None]:
    """Hold --output, before minutes are spent; an interrupt tells what is kept there, and how to go on."""
    import os

    from calibrate.measuring.folder import claimed, kept_state

    part = f"{options.shard[0]}-of-{options.shard[1]}"
    if options.out is None or os.environ.get("RANK", "0") != "0":  # the first process of a launch holds it for all
        yield
        return
    with claimed(options.out, part, keep=not (options.resume or overwrite), profile=options.profile):
        first = options.shard[0] == 0
        try:
            yield
            if first:  # what was refused leaves nothing
                save(ctx, options.out)
        except KeyboardInterrupt:
            if first:
                save(ctx, options.out)
            adding = () if options.profile is not None else ("--resume",)
            command = again(ctx, without=("--overwrite",), adding=adding)
            click.echo(f"\n{kept_state(options.out, part)}\nGo on with: {command}", err=True)
            sys.exit(130)


def _write(options: Options, outcome: Outcome, fmt: str, log_samples: bool) -> None:
    from calibrate.freeze import freeze
    from planner.document import canonical, write_atomic
    from planner.report.page import page, profile_page
    from planner.report.plan_view import describe

    profile, out = outcome.profile, options.out
    if profile is None or out is None:
        return
    profile.save(out / "profile.json")
    written = ["profile.json", "report.html"]
    if outcome.decision is not None:
        plan: Plan = freeze(outcome, options.seed)
        plan.save(out / "plan.json")
        path = str(out / "plan.json")
        write_atomic(out / "report.html", page(plan, profile, outcome.decision.trials, path, outcome.shown))
        written.append("plan.json")
        if log_samples and outcome.evaluation is not None and outcome.asked is not None:
            log_answers(out / ANSWERS, outcome.asked, outcome.evaluation.answers)
            written.append(ANSWERS)
        click.echo(canonical(plan.content()) if fmt == "json" else describe(plan, fmt, path), nl=fmt != "json")
    else:
        write_atomic(out / "report.html", profile_page(profile))
    took = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in outcome.seconds.items())
    click.echo(f"wrote {', '.join(written)} into {out} ({took})", err=True)
