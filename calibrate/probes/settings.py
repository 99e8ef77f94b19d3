"""Probe settings as a user writes them, ``attribution.masks=10000``, typed by the probe's constructor.

Lists are written ``0.1/0.2/0.3``, and ``auto`` leaves the choice to the probe where it has one.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from calibrate.probes.base import Probe, probe_class
from planner.errors import InputError, nearest

AUTO = "auto"


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Constructor arguments by probe name, from ``PROBE.KEY=VALUE`` each.

    Raises:
        InputError: another form, an unknown probe or key (the nearest valid one is named), a setting given twice, or a
            value of another type than the probe's.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        name, dot, key = place.strip().partition(".")
        if not (equals and dot and key):
            raise InputError(f"'{text}' is not PROBE.KEY=VALUE", "Write it like masking.samples=16")
        hints = setting_types(probe_class(name))
        if key not in hints:
            keys = ", ".join(hints) or "none"
            raise InputError(f"probe '{name}' has no setting '{key}'", f"{nearest(key, hints)}Its settings: {keys}")
        if key in found.setdefault(name, {}):
            raise InputError(f"the setting {name}.{key} is given twice", "Give it once")
        found[name][key] = _typed(f"{name}.{key}", value.strip(), hints[key])
    return found


def setting_types(probe: type[Probe]) -> dict[str, Any]:
    """A probe's settings and their types: the parameters of its constructor."""
    hints = typing.get_type_hints(probe.__init__)
    return {key: hints[key] for key in inspect.signature(probe).parameters}


def spelled_defaults(name: str) -> dict[str, str]:
    """A probe's settings with their defaults, as they would be written."""
    return {key: _spell(value) for key, value in probe_class(name)().settings.items()}


def _typed(place: str, text: str, hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text == AUTO and types.NoneType in options:
        return None
    listed = any(typing.get_origin(option) is not None for option in options)
    value = [part for part in text.split("/") if part] if listed else text
    try:
        typed = TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise InputError(f"{place}: {message[0].lower()}{message[1:]}, got '{text}'", "See `plan ls probes`") from error
    return tuple(typed) if listed else typed


def _spell(value: Any) -> str:
    if value is None:
        return AUTO
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "/".join(map(_spell, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
