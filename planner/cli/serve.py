"""`plan serve`: answer OpenAI-compatible chat completions under plans."""

from __future__ import annotations

import copy
import ipaddress
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.completion import MODEL, PLAN
from planner.cli.options import fits, load_for, loading, other_weights
from planner.cli.words import Verb, option

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from calibrate.inputs.load import Loaded
    from calibrate.inputs.load_options import LoadOptions
    from planner.plan import Plan
    from planner.serving.limits import Limits
    from planner.serving.pictures import Sources

#: What a request names to be answered without a plan.
DENSE = "dense"
MEGABYTE = 1 << 20


@click.command(
    "serve",
    cls=Verb,
    examples=[
        "plan serve plan.json                                     # http://127.0.0.1:8000/v1",
        "plan serve fast=a.json careful=b.json --port 9000",
        "plan serve plan.json --host 0.0.0.0 --api-key SECRET",
    ],
)
@click.argument("plans", metavar="[NAME=]PLAN...", nargs=-1, required=True, shell_complete=PLAN)
@option("--model", shell_complete=MODEL, help="Hub id or directory. [default: the model that the first plan names]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="PLAN_SERVE_API_KEY", help="What clients must send. Also PLAN_SERVE_API_KEY.")
@click.option("--max-requests", type=click.IntRange(1), default=64, show_default=True, help="At once; others get 429.")
@click.option("--max-pending-mb", type=click.IntRange(1), default=1024, show_default=True, help="Of all of them.")
@click.option("--max-body-mb", type=click.IntRange(1), default=20, show_default=True, help="Of one request.")
@click.option("--max-images", type=click.IntRange(0), default=16, show_default=True, help="Of one request.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=40_000_000,
    show_default=True,
    help="Of its images.",
)
@click.option("--max-context", type=click.IntRange(2), help="Tokens of prompt and answer. [default: the model's own]")
@option(
    "--max-new-tokens",
    "max_tokens",
    aliases=["--max-tokens"],
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--max-seconds", type=click.FloatRange(0, min_open=True), default=120, show_default=True, help="A request."
)
@click.option("--max-batch", type=click.IntRange(1), default=8, show_default=True, help="Requests that run together.")
@click.option(
    "--max-batch-tokens", type=click.IntRange(1), default=32_768, show_default=True, help="Of a batch, with answers."
)
@click.option(
    "--image-cache-mb", type=click.IntRange(0), default=1024, show_default=True, help="Image cache; 0 for none."
)
@click.option("--allow-files", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of images.")
@click.option("--allow-http", is_flag=True, help="Fetch images from public web addresses.")
@other_weights
@loading
def command(
    plans: tuple[str, ...],
    model: str | None,
    host: str,
    port: int,
    api_key: str | None,
    max_requests: int,
    max_pending_mb: int,
    max_body_mb: int,
    max_images: int,
    max_pixels: int,
    max_context: int | None,
    max_tokens: int,
    max_seconds: float,
    max_batch: int,
    max_batch_tokens: int,
    image_cache_mb: int,
    allow_files: Path | None,
    allow_http: bool,
    allow_other_weights: bool,
    loading_options: LoadOptions,
) -> None:
    """Serve OpenAI-compatible chat completions under plans.

    A request names as its model the PLAN that answers it: NAME where given, else the file's name without .json. The
    name `dense` is answered without a plan. All plans are of one model. SIGTERM ends the server once the requests
    that it has are answered. docs/serving.md says what is supported and bounded.
    """
    from planner.errors import InputError

    try:
        import uvicorn

        from planner.serving.limits import Limits
        from planner.serving.pictures import Sources
    except ImportError as error:
        raise InputError(f"the server needs a package ({error})", "pip install 'vlm-planner[serve]'") from error
    from planner.plan import load_plan

    named = {name: load_plan(path) for name, path in _named(plans).items()}
    loaded = load_for(next(iter(named.values())).model.id, model, loading_options)
    limits = Limits(
        requests=max_requests,
        pending_bytes=max_pending_mb * MEGABYTE,
        body_bytes=max_body_mb * MEGABYTE,
        images=max_images,
        pixels=max_pixels,
        context=max_context or context_of(loaded.model),
        answer_tokens=max_tokens,
        seconds=max_seconds,
        batch=max_batch,
        batch_tokens=max_batch_tokens,
    )
    if api_key is None and not _local(host):
        click.echo(f"Warning: everybody who reaches {host} can use this server: give --api-key", err=True)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    app = assemble(
        named,
        loaded,
        limits,
        Sources(allow_files, allow_http),
        image_cache_mb * MEGABYTE,
        api_key,
        allow_other_weights,
    )
    # uvicorn ends by raising the signal that ended it once more: not an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=int(max_seconds) + 1)


def assemble(
    plans: dict[str, Plan],
    loaded: Loaded,
    limits: Limits,
    sources: Sources,
    cache_bytes: int = 0,
    api_key: str | None = None,
    allow_other_weights: bool = False,
) -> Starlette:
    """The server over a loaded model.

    Args:
        plans: by the names that requests use.
        loaded: the model that all plans are for.
        limits: bounds.
        sources: where images may come from besides requests.
        cache_bytes: of the image cache; 0 for none.

    Raises:
        PlanMismatchError: a plan is for another model.
    """
    from calibrate.inputs.encode import Encoder
    from calibrate.inputs.identity import identify
    from calibrate.running.forced import ends_of
    from planner.runtime import ImageCache, attach
    from planner.runtime.batched import answer, sharing
    from planner.serving.app import create_app
    from planner.serving.prompts import Prompts

    encoder = Encoder(loaded.processor, identify(loaded.model, loaded.id).visual_ids)
    for plan in plans.values():
        fits(plan, loaded, encoder, allow_other_weights)
    cached = {name for name, plan in plans.items() if cache_bytes and plan.decision.schedule.image_stream_layers()}
    cache = ImageCache(cache_bytes) if cached else None
    ends = ends_of(loaded.model)
    models: dict[str, Any] = {DENSE: sharing(loaded.model)}
    handles: dict[str, Any] = {}
    for name, plan in plans.items():
        models[name] = sharing(loaded.model)
        decision = plan.decision
        handles[name] = attach(
            models[name], decision.schedule, decision.seed, image_cache=cache if name in cached else None
        )
    speaker = copy.deepcopy(encoder.tokenizer)

    def decode(tokens: Sequence[int]) -> str:
        return str(speaker.decode(tokens, skip_special_tokens=True)).strip()

    def close() -> None:
        for handle in handles.values():
            handle.detach()

    return create_app(
        {name: _facts(loaded.id, plans.get(name)) for name in (*plans, DENSE)},
        lambda name, jobs: answer(models[name], jobs, encoder.tokenizer.pad_token_id, handles.get(name)),
        Prompts(encoder, decode, ends, limits, sources),
        limits,
        cache,
        api_key,
        close,
    )


def context_of(model: Any) -> int:
    """Tokens that a model takes."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 4096)


def _facts(model: str, plan: Plan | None) -> dict[str, Any]:
    if plan is None:
        return {"root": model}
    return {"root": model, "policy": plan.decision.policy, "plan_sha256": plan.plan_sha256, "proven": plan.proven}


def _named(plans: Sequence[str]) -> dict[str, Path]:
    """Names of plans and their files.

    Raises:
        UsageError: two plans have one name, or one that is taken.
    """
    found: dict[str, Path] = {}
    for one in plans:
        name, equals, path = one.partition("=")
        if not equals or "/" in name or Path(one).exists():
            name, path = Path(one).stem, one
        if name in found or name == DENSE:
            raise click.UsageError(f"the name {name!r} is taken: give another one, as in fast={path}")
        found[name] = Path(path)
    return found


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
