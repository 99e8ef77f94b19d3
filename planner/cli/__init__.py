"""The command line, `plan`: a thin click group, one file per verb, nothing but parsing and printing.

A verb's module is imported when the verb is run (or its help is asked for), and imports what it needs inside its
function, so that `plan --help` imports neither torch nor transformers. Data goes to stdout, everything else to
stderr. Exit status: 0 done, 1 refused input (one line of cause and remedy, no traceback), 2 wrong usage.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from planner.errors import PlannerError

#: Verb -> module under planner.cli that holds its click command as `command`.
VERBS = {
    "calibrate": "calibrate",
    "report": "report",
    "evaluate": "evaluate",
    "freeze": "freeze",
    "export": "export",
    "push": "push",
    "pull": "pull",
    "run": "run",
    "serve": "serve",
    "bench": "bench",
    "show": "show",
    "validate": "validate",
    "merge": "merge",
    "schema": "schema",
    "ls": "ls",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"planner.cli.{VERBS[cmd_name]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            from planner.errors import nearest

            ctx.fail(f"There is no verb '{args[0]}'. {nearest(args[0], VERBS)}Verbs: {', '.join(VERBS)}.")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlm-planner", prog_name="plan")
def cli() -> None:
    """Calibrate a vision-language model, freeze a token-pruning plan and run it.

    The model is an unmodified transformers model. `plan VERB --help` describes a verb; docs/glossary.md in the
    repository explains the terms. `plan calibrate` is where to begin: it needs nothing.
    """


def _refuse(message: str) -> NoReturn:
    from planner.text import printable

    click.echo(f"Error: {printable(message)}", err=True)
    sys.exit(1)


def main() -> None:
    """Entry point: runs the group and turns refusals into one line and exit status 1."""
    try:
        cli(standalone_mode=True, prog_name="plan")
    except PlannerError as error:
        _refuse(str(error))
    except BrokenPipeError:
        # The reader (`head`, a pager) has gone: not an error, but Python would complain again when it flushes
        # stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _refuse(f"{error.strerror or error}{where}. Check the path and its permissions")
