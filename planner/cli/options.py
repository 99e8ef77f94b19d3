"""Options that several verbs share, spelled as the ecosystem spells them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from calibrate.inputs.load_options import LoadOptions
    from planner.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])


def sampling(function: F) -> F:
    """How samples are read."""
    return _with(
        function,
        [
            click.option("--prompt", help="Question for every image of a folder."),
            click.option("--image-column", default="image", show_default=True, help="Image column of a datasets id."),
            click.option(
                "--prompt-column", default="prompt", show_default=True, help="Prompt column of a datasets id."
            ),
            click.option(
                "--answer-column", default="answer", show_default=True, help="Answer column of a datasets id."
            ),
            click.option("--split", default="test", show_default=True, help="Split of a datasets id."),
        ],
    )


def judging(function: F) -> F:
    """What a sample loses, and when an answer is right."""
    return _with(
        function,
        [
            click.option(
                "--loss",
                type=click.Choice(["answer", "tokens", "nll", "score"]),
                help="What a sample loses: its whole answer (0 or 1), the share of the dense answer's tokens that "
                "change, its likelihood, or the metric's drop. [default: answer; tokens where answers are long]",
            ),
            click.option(
                "--metric",
                help="When an answer is right: exact, leading, contains, vqa, anls, or module:function of your own. "
                "[default: exact]",
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

    return _with(
        cast(F, gathered),
        [
            click.option(
                "--device",
                default="auto",
                show_default=True,
                help="auto (the first accelerator), cpu, cuda, cuda:1, mps, ...",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                default="auto",
                show_default=True,
                help="Weights' dtype; auto is the checkpoint's own, float32 on a CPU.",
            ),
            click.option("--revision", help="Branch, tag or commit of the model on the hub."),
            click.option("--trust-remote-code", is_flag=True, help="Allow model code from the hub to run."),
            click.option("--attn-implementation", help="Attention kernel: sdpa (transformers' default) or eager."),
            click.option("--device-map", help="auto spreads a model over several devices."),
            click.option(
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
    return _with(
        function,
        [click.option("--allow-other-weights", is_flag=True, help="Use the plan on a fine-tune of its model.")],
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


def _with(function: F, options: list[Callable[[F], F]]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def load_for(plan_model_id: str, model: str | None, options: LoadOptions) -> Any:
    """The model a plan is for: `model` where given, else the plan's own id (the bundled models by their names)."""
    from calibrate.inputs.load import load

    return load(model if model is not None else plan_model_id, options)
