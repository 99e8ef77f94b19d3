"""`plan report`: what policies cost, computed from a model's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planner.cli.completion import (
    MODEL,
    bundled_models,
    conventions,
    devices,
    names,
    policies,
    shipped_models,
)
from planner.cli.words import Verb, option

FORMATS = ("table", "md", "csv", "json", "html")
#: Parameters that say nothing without a device.
_OF_HARDWARE = ("engine", "eager", "tp", "pp", "ep")


class _Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """WIDTHxHEIGHT in pixels."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value[0], value[1]
        width, _, height = str(value).lower().partition("x")
        try:
            return int(width), int(height)
        except ValueError:
            self.fail(f"'{value}' is not a size like 640x480", param, ctx)


class _Video(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """WIDTHxHEIGHTxFRAMES, with @FPS behind it where the processor is to choose among the frames."""

    name = "WxHxFRAMES[@FPS]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int, float | None]:
        if isinstance(value, tuple):
            return value
        size, _, rate = str(value).lower().partition("@")
        try:
            width, height, frames = (int(part) for part in size.split("x"))
            return width, height, frames, float(rate) if rate else None
        except ValueError:
            self.fail(f"'{value}' is not a video like 1280x720x16 or 1280x720x300@30", param, ctx)


class _Bits(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """The size of an element that kernels exist for."""

    name = "BITS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if str(value) not in ("32", "16", "8", "4"):
            self.fail(f"elements of {value} bits are not computed with: give 32, 16, 8 or 4", param, ctx)
        return int(value)


@click.command(
    "report",
    cls=Verb,
    examples=[
        "plan report llava-1.5-7b --policy fastv:k=2,ratio=0.75 --hardware h100-sxm",
        "plan report llava-hf/llava-1.5-7b-hf --image 640x480 --text-tokens 50",
        "plan report llava-1.5-7b --sweep prellm:keep=0.1..0.9..0.1 -o sweep.csv",
    ],
)
@click.argument(
    "targets",
    metavar="TARGET...",
    nargs=-1,
    shell_complete=names(shipped_models, bundled_models, files=True),
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME[:key=value,...]",
    shell_complete=policies(),
    help="Add a policy as a row; repeatable. + composes policies.",
)
@click.option(
    "--convention",
    default="exact",
    shell_complete=names(conventions),
    show_default=True,
    help="How FLOPs are counted: exact, causal, pdrop, cdpruner, fastv, sparsevlm or mean-token.",
)
@click.option("--visual-tokens", type=int, help="Visual tokens of all images together.")
@click.option(
    "--image",
    "images",
    type=_Size(),
    multiple=True,
    help="Image size in pixels, to derive the visual tokens and the text tokens around them; repeatable.",
)
@click.option(
    "--video",
    "videos",
    type=_Video(),
    multiple=True,
    help="Size and frames of a video as the model gets them; with its frames a second, those the family's processor "
    "takes of it; repeatable.",
)
@click.option("--max-pixels", type=int, help="The processor's limit on an image's pixels, in place of the model's own.")
@click.option(
    "--decoder-only",
    is_flag=True,
    help="Cost the text decoder alone, whatever stands in front of it; --visual-tokens says how many reach it.",
)
@click.option("--text-tokens", type=int, help="Text tokens after the image.")
@click.option("--system-tokens", type=int, help="Text tokens before the image.")
@click.option("--context-tokens", type=int, help="How many of the text tokens are prunable context.")
@click.option("--output-tokens", type=int, help="Tokens of the answer.")
@option("--batch-size", "batch", aliases=["--batch"], type=int, help="Requests that run together.")
@click.option("--weight-bits", type=_Bits(), help="Bits per weight: 32, 16, 8 or 4.")
@click.option("--kv-bits", type=_Bits(), help="Bits per cached key or value element: 32, 16, 8 or 4.")
@click.option(
    "--image-stream-cached", is_flag=True, help="Cost a further question about an image that is in the image cache."
)
@click.option(
    "--head",
    type=click.Choice(["last", "all"]),
    default="last",
    show_default=True,
    help="Positions on which the language-model head runs.",
)
@click.option(
    "--alone",
    type=click.Choice(["fast", "generic"]),
    default="fast",
    show_default=True,
    help="How visual rows that see only themselves run: values and FFN only, or with queries and keys.",
)
@click.option(
    "--hardware",
    "device",
    shell_complete=names(devices, files=True),
    help="Add roofline latency for a device (plan ls hardware) or a JSON file.",
)
@click.option(
    "--engine",
    type=click.Choice(["hf", "vllm", "ideal"]),
    help="What runs the model, for --hardware: transformers, a serving engine, or good kernels without overhead. "
    "[default: the row's, which is hf]",
)
@click.option(
    "--eager", is_flag=True, help="For --hardware: attention weights are written out, as no fused kernel does."
)
@click.option("--tp", type=click.IntRange(1, 1024), default=1, show_default=True, help="Devices that cut every matrix.")
@click.option(
    "--pp", type=click.IntRange(1, 1024), default=1, show_default=True, help="Devices that take turns by layer."
)
@click.option(
    "--ep", type=click.IntRange(1, 1024), default=1, show_default=True, help="Devices that share the experts."
)
@click.option(
    "--sweep",
    "swept",
    metavar="NAME:key=a..b,...",
    shell_complete=policies(),
    help="Cost every combination of a policy's parameters, as CSV; as HTML, those that no other one beats.",
)
@click.option(
    "--published-latency",
    "published_latency",
    is_flag=True,
    help="Estimate published measurements of latency, as Markdown; takes no TARGET.",
)
@click.option(
    "--published", is_flag=True, help="Recompute the papers' published figures, as Markdown; takes no TARGET."
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Plain text, Markdown, CSV, JSON or HTML.",
)
@click.option(
    "--interactive",
    is_flag=True,
    help="With --format html: a page on which model, pictures, text, batch, hardware, engine and two policies are "
    "chosen; for every TARGET, or all shipped models. It needs no server.",
)
@click.option(
    "--check",
    "checked",
    metavar="MODEL",
    shell_complete=MODEL,
    help="Load MODEL (directory, hub id or reference/plain), run one forward, and show the FLOPs that torch's and "
    "fvcore's counters measure beside the prediction, dense and with each --policy; takes no TARGET.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this file instead of stdout.")
def command(
    targets: tuple[str, ...],
    policies: tuple[str, ...],
    convention: str,
    images: tuple[tuple[int, int], ...],
    videos: tuple[tuple[int, int, int, float | None], ...],
    max_pixels: int | None,
    decoder_only: bool,
    device: str | None,
    swept: str | None,
    checked: str | None,
    published: bool,
    published_latency: bool,
    engine: Any,
    eager: bool,
    tp: int,
    pp: int,
    ep: int,
    head: Any,
    alone: Any,
    fmt: str,
    interactive: bool,
    output: Path | None,
    **sizes: Any,
) -> None:
    """Compute what policies cost, without weights.

    TARGET is a shipped model (see plan ls models), a config.json, a model directory, a hub id, a bundled model such as
    reference/plain, a profile or a plan.
    The first row of each table is the dense model.
    """
    if published or published_latency:
        option = "--published" if published else "--published-latency"
        _refuse_beside(option, {"published", "published_latency", "output"}, "it has models and settings of its own")
    if published:
        from planner.report.published import markdown

        _write(markdown(), output)
        return
    if published_latency:
        from planner.report.published_latency import markdown as page

        _write(page(), output)
        return
    if checked is not None:
        beside = {"checked", "policies", "head", "fmt", "output"}
        _refuse_beside("--check", beside, "the forward decides")
        if fmt in ("csv", "html"):
            raise click.UsageError("--check prints table, md or json")
        from planner.cli.checking import check_model
        from planner.policies import parse

        _write(check_model(checked, [(text, parse(text)) for text in policies], head, fmt), output)
        return
    if interactive:
        beside = {"interactive", "targets", "images", "max_pixels", "device", "fmt", "output"}
        _refuse_beside("--interactive", beside, "the page asks for it")
        if fmt != "html":
            raise click.UsageError("--interactive makes a page: give --format html")
        _write(_page(targets, images, max_pixels, device), output)
        return
    if not targets:
        raise click.UsageError("Give a TARGET, such as llava-1.5-7b (plan ls models), --check or --published.")
    _refuse_what_has_no_effect()
    from planner.policies import parse
    from planner.report.costs import render, report
    from planner.report.targets import asked_workload, read_target

    given = {name: value for name, value in sizes.items() if value is not None and value is not False}
    if (images or videos) and "visual_tokens" in given:
        raise click.UsageError("--image and --video decide the visual tokens: leave --visual-tokens out")
    parsed = [(text, parse(text)) for text in policies]
    row = _hardware(device, engine, {"tp": tp, "pp": pp, "ep": ep})
    reports, sheets, fronts = [], [], []
    for text in targets:
        target = read_target(text, max_pixels, decoder_only)
        workload = asked_workload(target, images, given, videos)
        if swept is not None:
            from planner.report.sweeps import sweep_csv, sweep_front

            if fmt == "html":
                fronts.append(sweep_front(target, workload, swept, convention, row))
            else:
                sheets.append(sweep_csv(target, workload, swept, convention, row))
            continue
        settled = [(name, policy.resolve(target.spec, workload, target.profile)) for name, policy in parsed]
        _refuse_without_context(settled, workload)
        for (_, policy), (name, found) in zip(parsed, settled, strict=True):
            if found != policy:
                click.echo(f"{name} is {found}", err=True)
        chosen = [(name, policy.schedule(target.spec, workload, target.profile)) for name, policy in settled]
        reports.append(report(target, workload, [*target.plans, *chosen], convention, row, head, alone, eager))
    if fmt == "html":
        from planner.report import costs_page

        text = costs_page.sweep_page(fronts) if swept is not None else costs_page.page(reports)
    else:
        text = "\n".join(sheets) if swept is not None else render(reports, fmt)
    _write(text, output)


def _refuse_without_context(policies: list[tuple[str, Any]], workload: Any) -> None:
    """Context pruning without a context is the dense model, and its row would say that it saves nothing.

    Raises:
        InputError: naming the policy.
    """
    from planner.errors import InputError
    from planner.report.rows_view import base_name

    for name, policy in policies:
        if not workload.context_tokens and "context" in base_name(str(policy)).split("+"):
            raise InputError(f"'{name}' prunes context, and there is none", "Give --context-tokens")


def _refuse_beside(option: str, beside: set[str], reason: str) -> None:
    """Refuse what shapes other reports and has no place beside an option."""
    given = [spelling for name, spelling in _written().items() if name not in beside]
    if given:
        raise click.UsageError(f"{', '.join(given)} cannot go with {option}: {reason}")


def _refuse_what_has_no_effect() -> None:
    """Refuse options that would be passed over without a word."""
    given = _written()
    idle = [given[name] for name in _OF_HARDWARE if name in given]
    if idle and "device" not in given:
        raise click.UsageError(
            f"{', '.join(idle)} without --hardware changes nothing: give a row of `plan ls hardware`"
        )
    if "swept" in given and "policies" in given:
        raise click.UsageError("--policy cannot go with --sweep, which costs one policy's parameters: give one of them")
    if "swept" in given and "fmt" in given and click.get_current_context().params["fmt"] not in ("csv", "html"):
        raise click.UsageError("--sweep writes csv or html")


def _written() -> dict[str, str]:
    """What the command line holds, by parameter, as it is spelled."""
    ctx = click.get_current_context()
    return {
        str(parameter.name): parameter.opts[0] if isinstance(parameter, click.Option) else "TARGET"
        for parameter in ctx.command.params
        if ctx.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
    }


def _page(
    targets: tuple[str, ...], images: tuple[tuple[int, int], ...], max_pixels: int | None, device: str | None
) -> str:
    """The interactive page of the targets, or of all shipped models; it begins with the first model and device."""
    from planner.cost.hardware import hardware, shipped_rows
    from planner.report.explorer import explorer
    from planner.report.targets import read_target
    from planner.spec import shipped

    names = dict.fromkeys((device or "h100-sxm", *shipped_rows()))
    models = {text: read_target(text, max_pixels) for text in targets or dict.fromkeys(("llava-1.5-7b", *shipped()))}
    return explorer(models, {name: hardware(name) for name in names}, images)


def _hardware(device: str | None, engine: Any, shares: dict[str, int]) -> Any:
    if device is None:
        return None
    from planner.cost.hardware import hardware
    from planner.cost.parallel import Parallel

    row = hardware(device)
    for doubt in row.doubts:
        click.echo(f"Warning: {doubt}", err=True)
    changed: dict[str, Any] = {} if engine is None else {"engine": engine}
    if max(shares.values()) > 1:
        changed["parallel"] = Parallel(**shares)
    return row.model_copy(update=changed)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    from planner.document import write_atomic

    write_atomic(output, text)
    click.echo(f"Wrote {output}", err=True)
