"""`plan ls`: what is shipped and what is supported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from planner.cli.words import Verb

_T = TypeVar("_T")


@click.command("ls", cls=Verb, examples=["plan ls policies", "plan ls hardware --format md"])
@click.argument(
    "what",
    metavar="WHAT",
    type=click.Choice(["models", "families", "policies", "hardware", "engines", "conventions", "probes"]),
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "md", "json"]),
    default="table",
    show_default=True,
    help="Plain text, Markdown or JSON.",
)
def command(what: str, fmt: str) -> None:
    """List models, policies, probes and the like.

    WHAT is models (shipped facts), families (known model types), policies, hardware, engines (constants of latency
    estimates), conventions (ways of counting FLOPs) or probes.
    """
    rows: Sequence[Mapping[str, Any]] = {
        "models": _models,
        "families": _families,
        "policies": _policies,
        "hardware": _hardware,
        "engines": _engines,
        "conventions": _conventions,
        "probes": _probes,
    }[what]()
    if fmt == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    style, line_break = {"table": ("simple", "\n"), "md": ("github", "<br>")}[fmt]
    shown = [{name: _cell(value, line_break) for name, value in row.items()} for row in rows]
    click.echo(tabulate(shown, headers="keys", tablefmt=style, disable_numparse=True))


def _cell(value: str | dict[str, str], line_break: str) -> str:
    """A table's cell; key=value line by line for a dictionary."""
    return value if isinstance(value, str) else line_break.join(f"{key}={one}" for key, one in value.items())


def _models() -> list[dict[str, str]]:
    from planner.spec import ModelSpec, shipped, shipped_model

    found = []
    for name in shipped():
        entry, spec = shipped_model(name), ModelSpec.from_config(name)
        found.append(
            {
                "model": name,
                "family": spec.family,
                "layers": str(spec.layers),
                "hidden size": str(spec.hidden_size),
                "visual tokens": str(entry["visual_tokens"]),
                "source": entry["source"],
            }
        )
    return found


def _usable(names: Iterable[str], read: Callable[[str], _T]) -> Iterator[tuple[str, _T]]:
    """Each with what is read of it; a warning in place of one whose package is broken."""
    from planner.errors import ExtensionError

    for name in names:
        try:
            yield name, read(name)
        except ExtensionError as error:
            click.echo(f"Warning: {error}", err=True)


def _families() -> list[dict[str, str]]:
    from planner import extensions
    from planner.spec.config import families, role_of

    kinds = {
        "vlm": "vision-language model",
        "original": "vision-language model with its own code",
        "decoder": "text decoder",
        "tower": "vision tower",
    }
    list(_usable(extensions.added(extensions.FAMILIES), role_of))  # warns of broken ones
    return [{"model type": name, "kind": kind} for role, kind in kinds.items() for name in families(role)]


def _policies() -> list[dict[str, str]]:
    from planner.policies import names, policy_class

    return [
        {
            "policy": name,
            "keys": ", ".join(policy.model_fields),
            "at equal cost": "yes" if policy.scaled(0.5) else "no",
            "what it does": policy.summary,
        }
        for name, policy in _usable(names(), policy_class)
    ]


def _hardware() -> list[dict[str, str]]:
    from planner.cost.hardware import hardware, rows

    found = []
    for name, row in _usable(rows(), hardware):
        found.append(
            {
                "hardware": name,
                "device": row.name,
                "dense TFLOP/s": f"{row.peak_tflops:g} {row.dtype}",
                "GB/s": f"{row.bandwidth_gbs:g}",
                "GB": f"{row.memory_gb:g}",
                "source": row.source,
            }
        )
    return found


def _engines() -> list[dict[str, Any]]:
    from planner.cost.engine import ENGINES, engine

    return [
        {
            "engine": name,
            "what it is": engine(name).summary,
            "constants": {key: f"{value:g}" for key, value in engine(name).constants.model_dump().items()},
            "sources": engine(name).sources,
        }
        for name in ENGINES
    ]


def _conventions() -> list[dict[str, str]]:
    from planner.cost import CONVENTIONS

    return [
        {"convention": rule.name, "formula": rule.formula, "leaves out": rule.omits, "source": rule.source}
        for rule in CONVENTIONS.values()
    ]


def _probes() -> list[dict[str, Any]]:
    from calibrate.probes.base import ALWAYS, DEFAULT, probe_class, probe_names
    from calibrate.probes.settings import spelled_defaults

    found = []
    for name, probe in _usable(probe_names(), probe_class):
        when = "always" if name == ALWAYS else "by default" if name in DEFAULT else "on request"
        found.append(
            {
                "probe": name,
                "runs": when,
                "settings": spelled_defaults(name),
                "what it measures": _first_paragraph(sys.modules[probe.__module__].__doc__ or probe.__doc__),
            }
        )
    return found


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())
