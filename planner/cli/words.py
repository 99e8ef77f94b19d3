"""What verbs and options are made of: help in groups with examples, older spellings that still work, and what a user
gave, to be saved or said again."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
#: Where a context keeps the words of the command line, and the values of its options as they were written.
_WORDS, _WRITTEN = "vlm_planner.words", "vlm_planner.written"


class Option(click.Option):
    """An option with a place in the help.

    Args:
        aliases: other spellings, which the help does not show.
        group: heading under which the help shows it; "" for the verb's own.
    """

    def __init__(
        self, param_decls: Sequence[str] | None = None, *, aliases: Iterable[str] = (), group: str = "", **settings: Any
    ) -> None:
        super().__init__([*(param_decls or ()), *aliases], **settings)
        self.aliases, self.group = frozenset(aliases), group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        opts = self.opts
        self.opts = [name for name in opts if name not in self.aliases]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = opts


#: As `click.option`, with `Option`'s arguments.
option = functools.partial(click.option, cls=Option)


def output(help: str, default: str | None = None) -> Callable[[Any], Any]:
    """The option that says where a result goes: a verb's parameter `out`."""
    place = None if default is None else Path(default)
    kind = click.Path(path_type=Path)
    return option("-o", "--output", "out", aliases=["--out"], type=kind, default=place, show_default=True, help=help)


class Verb(click.Command):
    """A command whose help has groups and examples.

    Args:
        examples: command lines.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = tuple(args)
        written, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        rest = super().parse_args(ctx, args)
        ctx.meta[_WRITTEN] = {
            name: value
            for name, value in written.items()
            if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        }
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"": []}
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", ""), []).append(record)
        for name, records in groups.items():
            with formatter.section(name or "Options"):
                formatter.write_dl(records)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def given(ctx: click.Context) -> dict[str, Any]:
    """What the user wrote, by parameter, in a file (`--config`) or on the command line, which counts more; as it was
    written."""
    return {**(ctx.default_map or {}), **ctx.meta[_WRITTEN]}


def again(ctx: click.Context, *, without: Iterable[str] = (), adding: Iterable[str] = ()) -> str:
    """The command line that was given, with other words, ready for a shell."""
    words = [word for word in ctx.meta[_WORDS] if word not in set(without)]
    return shlex.join([*ctx.command_path.split(), *words, *(word for word in adding if word not in words)])
