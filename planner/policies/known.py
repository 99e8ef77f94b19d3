"""Which policies there are, those of other packages among them, and one from its spelling."""

from __future__ import annotations

from collections.abc import Iterator

from planner import extensions
from planner.errors import ExtensionError, InputError, nearest
from planner.policies.base import REGISTRY, Policy
from planner.policies.compose import AnyPolicy, Composition


def names() -> tuple[str, ...]:
    """Names of all policies, sorted; nothing is imported for it."""
    return tuple(sorted({*REGISTRY, *extensions.added(extensions.POLICIES)}))


def policy_class(name: str) -> type[Policy]:
    """A policy's class by its name.

    Raises:
        InputError: there is none (the nearest valid name is told).
        ExtensionError: the package that adds it is broken.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if name in extensions.added(extensions.POLICIES):
        found: type[Policy] = extensions.load_class(extensions.POLICIES, name, Policy)
        return found
    raise InputError(f"there is no policy '{name}'", f"{nearest(name, names())}Policies: {', '.join(names())}")


def usable() -> Iterator[type[Policy] | ExtensionError]:
    """Every policy's class; in place of one that cannot be loaded, why."""
    for name in names():
        try:
            yield policy_class(name)
        except ExtensionError as error:
            yield error


def parse(text: str) -> AnyPolicy:
    """A policy from its spelling, ``name[:key=value,...]``; several joined by ``+``.

    Raises:
        InputError: an unknown name or key (the nearest valid one is named), or a value that makes no sense.
        ExtensionError: the package that adds a policy is broken.
    """
    parts = tuple(_parse_one(part) for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Composition(parts)


def _parse_one(text: str) -> Policy:
    name, _, rest = text.strip().partition(":")
    policy = policy_class(name)
    values: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"policy '{name}': '{pair}' is not key=value", f"Write it like {name}:key=value")
        if key in values:
            raise InputError(f"policy '{name}': '{key}' is given twice", "Give it once")
        values[key] = value
    return policy.make(values)
