"""What a shell completes beyond verbs, options and files: names that the package knows.

`plan` completes as every click command does once the shell has been told (docs/quickstart.md). A key press wants its
answer at once, so nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

#: As click wants it: what may stand where ``incomplete`` is being written.
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
#: Files and folders, which the shell finds itself.
_FILES = CompletionItem("", type="file")


def names(*sources: Callable[[], Iterable[str]], files: bool = False) -> Complete:
    """Completes names.

    Args:
        sources: they are asked when a key is pressed.
        files: a path may stand there too.
    """

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        known = [name for source in sources for name in source()]
        found = [CompletionItem(name) for name in known if name.startswith(incomplete)]
        return [_FILES, *found] if files else found

    return complete


def policies(*more: str) -> Complete:
    """Completes policies, then their keys, in compositions too: ``pre``, ``prellm:ke``, ``prellm:keep=0.5+vt``.

    Args:
        more: words that may stand in place of a policy.
    """

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, plus, last = incomplete.rpartition("+")
        name, colon, given = last.partition(":")
        if not colon:
            words = {**_summaries(), **({} if plus else dict.fromkeys(more))}
            found = {f"{before}{plus}{word}": told for word, told in words.items() if word.startswith(name)}
            return [CompletionItem(word, help=told) for word, told in found.items()]
        written, comma, key = given.rpartition(",")
        taken = {one.partition("=")[0] for one in written.split(",")}
        rest = f"{before}{plus}{name}:{written}{comma}"
        return [CompletionItem(f"{rest}{one}=") for one in _keys(name) if one.startswith(key) and one not in taken]

    return complete


def _summaries() -> dict[str, str]:
    from planner.errors import ExtensionError
    from planner.policies.known import usable

    return {one.name: one.summary for one in usable() if not isinstance(one, ExtensionError)}


def _keys(policy: str) -> Iterable[str]:
    from planner.errors import PlannerError
    from planner.policies import policy_class

    try:
        return policy_class(policy).model_fields
    except PlannerError:
        return ()


def shipped_models() -> Iterable[str]:
    """Models of which the facts are shipped."""
    from planner.spec import shipped

    return shipped()


def bundled_models() -> Iterable[str]:
    """Models that come with their weights."""
    from calibrate.inputs.bundled import PREFIX, references

    return [f"{PREFIX}{name}" for name in references()]


def bundled_plans() -> Iterable[str]:
    """Plans of the bundled models."""
    from planner.bundled import plans

    return plans()


def devices() -> Iterable[str]:
    """Hardware rows, those of other packages among them."""
    from planner.cost.hardware import rows

    return rows()


def engines() -> Iterable[str]:
    """Engines that a plan can be handed to."""
    from planner.engines.facts import engine_names

    return engine_names()


def conventions() -> Iterable[str]:
    """Ways of counting FLOPs."""
    from planner.cost import CONVENTIONS

    return CONVENTIONS


def metrics() -> Iterable[str]:
    """When an answer is right."""
    from calibrate.running.metrics import METRICS

    return METRICS


#: A plan: a file, a folder, or the name of a bundled one.
PLAN = names(bundled_plans, files=True)
#: A model to be loaded: a folder, or the name of a bundled one. Hub ids are not completed.
MODEL = names(bundled_models, files=True)
