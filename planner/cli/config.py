"""`--config run.yaml`: options from a file, and the file that repeats a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planner.cli.words import F, given, option

#: What a run leaves beside its results.
FILE = "run.yaml"
#: Parameters that belong to one run and not to its repetition.
_OF_ONE_RUN = frozenset({"config", "resume", "overwrite"})


def configured(function: F) -> F:
    """The option `--config`. What stands on the command line counts more than the file."""
    return option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read,
        help=f"YAML file of options by name, such as the {FILE} beside earlier results; the command line counts more.",
    )(function)


def save(ctx: click.Context, folder: Path) -> None:
    """Write `FILE` into the folder of a run: what was given, so that ``--config`` repeats it."""
    import yaml

    from planner.document import write_atomic

    names = {one.name: _spelled(one) for one in ctx.command.params if one.name not in _OF_ONE_RUN}
    body = {
        names[name]: _plain(value, ctx.params.get(name))
        for name, value in given(ctx).items()
        if name in names and value is not None
    }
    write_atomic(folder / FILE, yaml.safe_dump(body, sort_keys=False) if body else "{}\n")


def _plain(written: Any, understood: Any) -> Any:
    """A value as YAML has it: a number where it was one."""
    if isinstance(understood, (int, float)):
        return understood
    return [*written] if isinstance(written, (list, tuple)) else written


def _read(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Options in a file become the defaults of this run.

    Raises:
        InputError: the file cannot be read, is no YAML mapping, or names an option that there is not.
    """
    if path is None:
        return
    import yaml

    from planner.errors import InputError, nearest
    from planner.files import read_text

    try:
        body = yaml.safe_load(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}", "See docs/deciding.md") from error
    if not isinstance(body, dict):
        raise InputError(f"{path} holds no options by name", "Write lines such as `agreement: 0.95`")
    known = {
        word.lstrip("-").replace("_", "-"): one for one in ctx.command.params for word in [*one.opts, one.name or ""]
    }
    found: dict[str, Any] = {}
    for key, value in body.items():
        one = known.get(str(key).replace("_", "-"))
        if one is None or one.name is None:
            options = sorted({_spelled(one) for one in ctx.command.params})
            hint = nearest(str(key), options)
            raise InputError(f"{path}: there is no option '{key}'", f"{hint}Options: {', '.join(options)}")
        found[one.name] = _values(value) if one.multiple or one.nargs != 1 else value
    ctx.default_map = {**(ctx.default_map or {}), **found}


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _spelled(parameter: click.Parameter) -> str:
    """An option's name in the file."""
    long = [word for word in parameter.opts if word.startswith("--")]
    return long[0].lstrip("-") if long else str(parameter.name)
