"""`plan evaluate`: accuracy of a plan on other samples, beside other policies at the same cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.completion import MODEL, PLAN, policies
from planner.cli.logged import log_answers
from planner.cli.options import fits, judging, load_for, loading, max_new_tokens, other_weights, sampling, shard_of
from planner.cli.words import Verb, option, output

if TYPE_CHECKING:
    from calibrate.deciding.executed import Evaluation
    from calibrate.inputs.load_options import LoadOptions
    from planner.evidence import LossName


@click.command(
    "evaluate",
    cls=Verb,
    examples=[
        "plan evaluate plan.json                                  # the bundled model's plan, on its test set",
        "plan evaluate plan.json --data others.jsonl --policy all",
        "plan evaluate plan.json --data others.jsonl --log-samples answers.jsonl",
    ],
)
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path), shell_complete=PLAN)
@option("--model", shell_complete=MODEL, help="Hub id or directory. [default: the model that the plan names]")
@option("--data", help="Samples: JSONL, an image folder or a datasets id. [default: the bundled test set]")
@option("--num-samples", aliases=["--limit"], type=click.IntRange(1), help="Draw this many samples. [default: all]")
@option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draw and of random pruning.")
@option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Samples per forward pass.")
@max_new_tokens
@option(
    "--policy",
    "against",
    multiple=True,
    shell_complete=policies("all"),
    help="Policy to compare with: a name (scaled to the plan's decoder FLOPs), all, or a full spelling; repeatable. "
    "Controls are always there. [default: fastv]",
)
@judging()
@option("--rounds", type=click.IntRange(0), default=15, show_default=True, help="Rounds of timing; 0 measures no time.")
@option(
    "--format",
    "fmt",
    type=click.Choice(["table", "md", "json"]),
    default="table",
    show_default=True,
    help="Plain text, Markdown or JSON; JSON adds accuracy by question type.",
)
@option("--log-samples", type=click.Path(path_type=Path), help="Write every answer, dense and planned, as JSONL.")
@option(
    "--shard",
    default="0/1",
    show_default=True,
    callback=shard_of,
    help="Evaluate part i of n only; unite the parts with `plan merge`.",
)
@output("Where a shard goes. [default: evaluation-i-of-n.json]")
@other_weights
@sampling
@loading
def command(
    plan_path: Path,
    model: str | None,
    data: str | None,
    prompt: str | None,
    image_column: str,
    prompt_column: str,
    answer_column: str,
    split: str,
    num_samples: int | None,
    seed: int,
    batch_size: int,
    max_new_tokens: int,
    against: tuple[str, ...],
    rounds: int,
    fmt: str,
    shard: tuple[int, int],
    out: Path | None,
    loss: LossName | None,
    metric: str | None,
    log_samples: Path | None,
    allow_other_weights: bool,
    loading_options: LoadOptions,
) -> None:
    """Evaluate a plan on other samples.

    Executes PLAN beside the dense model, controls and other policies at equal decoder FLOPs. Prints accuracy (where
    samples have answers), agreement with the dense model and loss, with 95 % intervals, cost and prefill time.
    Controls: the dense model against itself, the questions without their pictures, random pruning, smaller pictures.
    The plan itself is not changed.
    """
    from calibrate.deciding.equal_cost import comparable
    from calibrate.deciding.evaluate import BASELINES, execute
    from calibrate.deciding.evaluation_shards import EvaluationShard, part_of
    from calibrate.inputs.batches import Batches
    from calibrate.inputs.bundled import reference
    from calibrate.inputs.encode import Encoder
    from calibrate.inputs.identity import identify
    from calibrate.inputs.overlap import refuse_known, tell_duplicates
    from calibrate.inputs.samples import Columns, check_answers, load_samples
    from calibrate.running.losses import LossRunner
    from calibrate.running.metrics import DEFAULT
    from calibrate.running.metrics import metric as metric_named
    from planner.errors import InputError
    from planner.plan import load_plan
    from planner.policies import parse

    if out is not None and shard == (0, 1):
        raise click.UsageError("--output is where a shard goes: give --shard too, or redirect what is printed")
    plan = load_plan(plan_path)
    promise = None if plan.evidence is None else plan.evidence.promise
    judged = metric_named(metric or (promise.metric if promise is not None else None) or DEFAULT)
    judged_by = loss or (promise.loss if promise is not None else "answer")
    bundled = None if model is not None else reference(plan.model.id)
    source = data if data is not None or bundled is None else bundled.evaluation
    if source is None:
        raise InputError("there are no bundled samples for this model", "Give --data: JSONL, image folder, datasets id")
    samples = load_samples(
        source,
        prompt=prompt,
        columns=Columns(image_column, prompt_column, answer_column),
        split=split,
    ).choose(num_samples, seed)
    tell_duplicates(samples, "evaluation", lambda line: click.echo(line, err=True))
    refuse_known(plan.evidence.calibration_questions if plan.evidence is not None else None, samples)
    if metric is not None or judged_by == "score":
        check_answers(samples)
    part = part_of(len(samples), batch_size, shard) if shard != (0, 1) else None
    loaded = load_for(plan.model.id, model, loading_options)
    known = identify(loaded.model, loaded.id)
    encoder = Encoder(loaded.processor, known.visual_ids)
    fits(plan, loaded, encoder, allow_other_weights)
    compared = [name for item in against or BASELINES for name in (comparable() if item == "all" else (item,))]
    executed = execute(
        LossRunner(Batches(samples, encoder, loaded.model, batch_size), judged_by, max_new_tokens, judged, seed),
        known.spec,
        (parse(plan.decision.policy), plan.decision.schedule),
        against=compared,
        rounds=rounds if shard[0] == 0 else 0,  # one prefill is timed, that of the first sample
        progress=lambda line: click.echo(line, err=True),
        part=part,
    )
    if log_samples is not None:
        asked = [samples[i] for i in executed.ids]
        log_answers(log_samples, asked, {run.policy: run.answers for run in executed.runs})
        click.echo(f"wrote {log_samples}", err=True)
    if part is None:
        show(executed.evaluation(known.spec), fmt)
        return
    target = out or Path(f"evaluation-{shard[0]}-of-{shard[1]}.json")
    EvaluationShard(
        plan_sha256=plan.plan_sha256,
        config=plan.model.config,
        settings={
            "seed": seed,
            "batch size": batch_size,
            "answer tokens": max_new_tokens,
            "number format": str(loaded.model.dtype),
        },
        samples=len(samples),
        shard=shard,
        executed=executed,
    ).save(target)
    click.echo(f"wrote {target}, {len(part)} of {len(samples)} samples; unite all shards with `plan merge`", err=True)


def show(found: Evaluation, fmt: str) -> None:
    """Print an evaluation: tables, or JSON with accuracy by question type."""
    import json

    from planner.report.along_view import along_headers, along_rows
    from planner.report.evidence_view import KIND_HEADERS, kind_rows
    from planner.report.rows_view import filled, rows_table
    from planner.report.tables import table

    if fmt == "json":
        by_kind = {
            name: {kind: value.model_dump() for kind, value in kinds.items()} for name, kinds in found.by_kind.items()
        }
        document = {
            "samples": found.n,
            "digest": found.digest,
            "metric": found.metric,
            "loss": found.loss,
            "rows": [row.model_dump() for row in found.rows],
            "kinds": [kind.model_dump() for kind in found.kinds],
            "by_kind": by_kind,
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(rows_table(found.rows, fmt))
    if headers := along_headers(found.rows):
        click.echo("\n" + table(headers, along_rows(found.rows), fmt))
    if found.kinds:
        click.echo("\n" + table(*filled(KIND_HEADERS, kind_rows(found.kinds)), fmt))
    click.echo(f"{found.n} samples ({found.digest[:12]}), accuracy by '{found.metric}', loss '{found.loss}'", err=True)
