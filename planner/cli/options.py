"""Options that several verbs share, spelled as the ecosystem spells them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import click

from planner.cli.completion import metrics, names
from planner.cli.words import F, option

if TYPE_CHECKING:
    from calibrate.inputs.load_options import LoadOptions
    from planner.plan import Plan

#: Headings in the help of a verb.
SAMPLES, MEASURING, JUDGING, LOADING = "Samples", "What is measured", "What is judged", "Model loading"
#: What a sample loses, and when an answer is right: of a calibration and of an evaluation.
LOSSES, METRICS = ("answer", "tokens", "nll", "score"), "exact, leading, contains, vqa, anls, or module:function"


def sampling(function: F) -> F:
    """How samples are read."""
    return with_options(
        function,
        group=SAMPLES,
        options=[
            option("--prompt", help="Question for every image of a folder."),
            option("--image-column", default="image", show_default=True, help="Image column of a datasets id."),
            option("--prompt-column", default="prompt", show_default=True, help="Prompt column of a datasets id."),
            option("--answer-column", default="answer", show_default=True, help="Answer column of a datasets id."),
            option("--split", default="test", show_default=True, help="Split of a datasets id."),
        ],
    )


def judging(default: str | None = None) -> Callable[[F], F]:
    """What a sample loses, and when an answer is right.

    Args:
        default: metric unless told otherwise; None: what a plan was judged by.
    """
    return functools.partial(
        with_options,
        group=JUDGING,
        options=[
            option(
                "--loss",
                type=click.Choice(LOSSES),
                help="What a sample loses: its whole answer (0 or 1), the share of the dense answer's tokens that "
                "change, its likelihood, or the metric's drop. [default: answer; tokens where answers are long; score "
                "under --goal accuracy]",
            ),
            option(
                "--metric",
                shell_complete=names(metrics),
                default=default,
                show_default=default is not None,
                help=f"When an answer is right: {METRICS}." + ("" if default else " [default: the plan's, or exact]"),
            ),
        ],
    )


def loading(function: F) -> F:
    """How a model is loaded: the command gets one `LoadOptions` as its argument `loading_options`."""

    @functools.wraps(function)
    def gathered(**given: Any) -> Any:
        from calibrate.inputs.load_options import LoadOptions

        chosen = {field.name: given.pop(field.name) for field in fields(LoadOptions)}
        return function(**given, loading_options=LoadOptions(**chosen))

    return with_options(
        cast(F, gathered),
        group=LOADING,
        options=[
            option(
                "--device",
                default="auto",
                show_default=True,
                help="auto (the first accelerator), cpu, cuda, cuda:1, mps, ...",
            ),
            option(
                "--dtype",
                type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                default="auto",
                show_default=True,
                help="Weights' dtype; auto is the checkpoint's own, float32 on a CPU.",
            ),
            option("--revision", help="Branch, tag or commit of the model on the hub."),
            option("--trust-remote-code", is_flag=True, help="Allow model code from the hub to run."),
            option("--attn-implementation", help="Attention kernel: sdpa (transformers' default) or eager."),
            option("--device-map", help="auto spreads a model over several devices."),
            option(
                "--processor",
                multiple=True,
                callback=_processor_settings,
                metavar="KEY=VALUE",
                help="Replace a setting of the image processor, such as max_pixels=401408; repeatable.",
            ),
        ],
    )


def shard_of(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    """``i/n`` as two numbers."""
    index, slash, count = value.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise click.BadParameter("expected i/n, such as 0/4")
    return int(index), int(count)


def _processor_settings(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, Any], ...]:
    """Values are JSON where they can be read as such, else text."""
    found: dict[str, Any] = {}
    for one in values:
        key, equals, value = one.partition("=")
        if not (equals and key.strip()):
            raise click.BadParameter(f"'{one}' is not KEY=VALUE; write it like max_pixels=401408")
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value
    return tuple(found.items())


def other_weights(function: F) -> F:
    """Whether a plan may be used on weights that it was not made with."""
    return with_options(
        function,
        [option("--allow-other-weights", is_flag=True, help="Use the plan on a fine-tune of its model.")],
        LOADING,
    )


def fits(plan: Plan, loaded: Any, encoder: Any, allow_other_weights: bool) -> None:
    """Refuse a model that a plan was not made for; tell on stderr what else differs from what was measured.

    Raises:
        PlanMismatchError: another configuration or other weights.
        InputError: weights are not finite.
    """
    from planner.profile import processor_differences
    from planner.text import printable

    note = plan.check_model(loaded.model, allow_other_weights)
    if note:
        click.echo(f"note: {printable(note)}", err=True)
    different = processor_differences(plan.processor or {}, encoder.settings())
    if different:
        what = printable(", ".join(different))
        click.echo(f"Warning: the plan was measured with another processor: {what} differ", err=True)


def with_options(function: F, options: Sequence[Callable[[F], F]], group: str) -> F:
    """The function with options more, under a heading of the help."""
    for one in reversed(options):
        function = one(function)
        placed = function.__click_params__[-1]  # type: ignore[attr-defined]
        placed.group = placed.group or group
    return function


def max_new_tokens(function: F, default: int = 16, help: str = "Longest answer that is compared.") -> F:
    """How long an answer may be."""
    return option(
        "--max-new-tokens",
        aliases=["--answer-tokens", "--new-tokens"],
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help=help,
    )(function)


def load_for(plan_model_id: str, model: str | None, options: LoadOptions) -> Any:
    """The model a plan is for: `model` where given, else the plan's own id (the bundled models by their names)."""
    from calibrate.inputs.half_precision import slow_half_precision
    from calibrate.inputs.load import load

    loaded = load(model if model is not None else plan_model_id, options)
    note = slow_half_precision(loaded.model)
    if note is not None:
        click.echo(f"note: {note}", err=True)
    return loaded
