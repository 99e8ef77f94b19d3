"""Typed access to a Hugging Face configuration, with the defaults of its model type filled in.

Hub files leave out what equals a class default, and the same fact has several spellings over families and releases.
The defaults are data: ``profiles/families/<model_type>.json``, one file per model type.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from planner.errors import InputError, UnsupportedModelError

#: Sizes beyond this are a mistake in the file, not a model.
LARGEST = 1 << 31
#: As many layers, and entries of a list, at most: what is counted one by one. Large models have some hundred.
MOST_LAYERS = 4096


@functools.cache
def family(model_type: str, role: str) -> dict[str, Any]:
    """The data file of a model type.

    Args:
        model_type: as in the configuration.
        role: ``vlm``, ``decoder`` or ``tower``: what it must be.

    Raises:
        UnsupportedModelError: there is none, or it is another kind of model.
    """
    known = families(role)
    if model_type not in known:
        from difflib import get_close_matches

        near = get_close_matches(model_type, known, n=1, cutoff=0.7)
        kind = {"vlm": "model family", "decoder": "text decoder", "tower": "vision tower"}[role]
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise UnsupportedModelError(
            f"{kind} '{model_type}' is not known, and its cost is not guessed", f"{hint}Known: {', '.join(known)}"
        )
    data: dict[str, Any] = json.loads(_folder().joinpath(f"{model_type}.json").read_text())
    if data["role"] != role:
        raise UnsupportedModelError(
            f"'{model_type}' is a {data['role']}, not a {role}", "Give the whole model's config.json"
        )
    return data


def families(role: str) -> tuple[str, ...]:
    """Every known model type of a role, sorted."""
    return _index()[role]


@functools.lru_cache(maxsize=1)
def _index() -> dict[str, tuple[str, ...]]:
    index: dict[str, list[str]] = {"vlm": [], "decoder": [], "tower": []}
    for entry in _folder().iterdir():
        if entry.name.endswith(".json"):
            index[json.loads(entry.read_text())["role"]].append(entry.name[: -len(".json")])
    return {role: tuple(sorted(names)) for role, names in index.items()}


def _folder() -> Any:
    return resources.files("planner.profiles") / "families"


class Config:
    """A configuration block; getters take alternative spellings, the first that is set wins.

    Args:
        values: the block.
        where: how errors name it (``text_config``).
        defaults: for what the block leaves out.
    """

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values = values
        self.where = where
        self.defaults = defaults or {}

    def get(self, *names: str, default: Any = None) -> Any:
        """The first spelling the block sets; then the first that has a default; then `default`."""
        for source in (self.values, self.defaults):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        return default

    def has(self, name: str) -> bool:
        """True when the block itself mentions the field, if only as null."""
        return name in self.values

    def size(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`.

        Raises:
            InputError: it is missing, not a whole number, or absurd.
        """
        value = self.get(*names, default=default)
        if value is None:
            spelled = " or ".join(f"'{name}'" for name in names)
            raise InputError(
                f"the configuration's {self.where} has no field {spelled}", "Give the model's complete config.json"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _whole(value):
            raise InputError(
                f"{self.where}.{names[0]} must be a whole number, got {value!r}", "Check the configuration"
            )
        if not least <= value < LARGEST:
            raise InputError(
                f"{self.where}.{names[0]} = {value} makes no sense, at least {least} is needed",
                "Check the configuration",
            )
        return int(value)

    def layers(self, *names: str, default: int | None = None) -> int:
        """A number of layers.

        Raises:
            InputError: as `size`, or there are more than `MOST_LAYERS`.
        """
        count = self.size(*names, default=default)
        if count > MOST_LAYERS:
            raise InputError(
                f"{self.where}.{names[0]} = {count} makes no sense, {MOST_LAYERS} is the most",
                "Check the configuration",
            )
        return count

    def side(self, *names: str) -> int:
        """A size that may be written as a number or as a pair of equal numbers.

        Raises:
            InputError: as `size`, or the pair is not square.
        """
        value = self.get(*names)
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, Sequence) and not isinstance(value, str):
            if not value or any(one != value[0] for one in value):
                raise InputError(
                    f"{self.where}.{names[0]} = {list(value)} is not square", "Only square sizes are known here"
                )
            return Config({names[0]: value[0]}, self.where).size(names[0])
        return self.size(*names)

    def numbers(self, *names: str) -> tuple[int, ...]:
        """A list of whole numbers, empty when it is not set; one number counts as a list of one.

        Raises:
            InputError: it is something else.
        """
        value = self.get(*names, default=())
        listed = [value] if isinstance(value, int) else value
        usual = isinstance(listed, (list, tuple)) and len(listed) <= MOST_LAYERS
        if not usual or not all(isinstance(item, int) and abs(item) < LARGEST for item in listed):
            raise InputError(
                f"{self.where}.{names[0]} must be a list of whole numbers, got {value!r}", "Check the configuration"
            )
        return tuple(listed)


def _whole(value: float) -> bool:
    return isinstance(value, int) or (math.isfinite(value) and value.is_integer())
