"""Typed access to a Hugging Face configuration, with the defaults of its model type filled in.

Hub files leave out what equals a class default, and the same fact has several spellings over families and releases.
What a model type is made of is data: ``profiles/families/<model_type>.json``, one file per model type, or such a file
of another package (`planner.extensions`):

    role        ``vlm`` (a whole model), ``decoder``, ``tower``, or ``original``: a model with its own code, whose
                configuration a function of `planner.spec.originals` rewrites (``rewrite``, and the ``text`` it takes)
    defaults    for what a configuration leaves out
    traits      what only its reader asks for
    rewrite     of a vlm too: what its hub files have under other names, set right by such a function
    text, vision, projector      of a vlm: the model types of its parts, and the reader of its projector
    images, video                of a vlm: what of `ImageRule` its checkpoints on the hub have otherwise than the reader
                                 says, ``marks`` among it, and its `VideoRule`
    word_embedders               of a vlm: blocks, and their widths where they do not say, whose words are looked up and
                                 projected for every token, whatever it is
    modelled                     its cost leaves something out or guesses it, and says so
    reader                       of a tower
    attention, ffn, ...          of a decoder, see `planner.spec.decoder`

A reader is a function in `planner.spec.projectors` or `planner.spec.towers` by its name, or any other as
``package.module:function``.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from planner import extensions
from planner.errors import ExtensionError, InputError, UnsupportedModelError

#: Sizes beyond this are a mistake in the file, not a model.
LARGEST = 1 << 31
#: As many layers, and entries of a list, at most: what is counted one by one. Large models have some hundred.
MOST_LAYERS = 4096
#: What a family's file must say, by role.
_SAYS = {
    "vlm": ("text", "vision", "projector"),
    "decoder": ("attention", "ffn"),
    "tower": ("reader",),
    "original": ("rewrite",),
}
#: What there is for a whole model that is not known.
_ALONE = "plan report --decoder-only costs its text decoder alone. "
_KINDS = {"vlm": "model family", "decoder": "text decoder", "tower": "vision tower", "original": "original"}


def family(model_type: str, role: str) -> dict[str, Any]:
    """The data file of a model type.

    Args:
        model_type: as in the configuration.
        role: ``vlm``, ``decoder`` or ``tower``: what it must be.

    Raises:
        UnsupportedModelError: there is none, or it is another kind of model.
        ExtensionError: the package that adds it is broken.
    """
    data = _data(model_type)
    if data is None:
        from difflib import get_close_matches

        known = families(role)
        near = get_close_matches(model_type, known, n=1, cutoff=0.7)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise UnsupportedModelError(
            f"{_KINDS[role]} '{model_type}' is not known, and its cost is not guessed",
            f"{hint}{_ALONE if role == 'vlm' else ''}Known: {', '.join(known)}",
        )
    if data["role"] != role:
        raise UnsupportedModelError(
            f"'{model_type}' is a {_KINDS[data['role']]}, not a {_KINDS[role]}", "Give the whole model's config.json"
        )
    return data


def role_of(model_type: str) -> str:
    """``vlm``, ``decoder``, ``tower`` or ``original``; empty where the model type is not known."""
    data = _data(model_type)
    return "" if data is None else str(data["role"])


def families(role: str) -> tuple[str, ...]:
    """Every known model type of a role, sorted; those of broken packages are left out (`plan ls families` tells)."""
    found = set(_shipped()[role])
    for name in extensions.added(extensions.FAMILIES):
        try:
            found |= {name} if role_of(name) == role else set()
        except ExtensionError:
            continue
    return tuple(sorted(found))


def reader(data: Mapping[str, Any], key: str, home: str) -> Callable[..., Any]:
    """The function that a family's file names under `key`.

    Args:
        home: the module of readers that are named without one.

    Raises:
        ExtensionError: there is no such function.
    """
    module, _, name = str(data[key]).rpartition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module or home), name)
    except Exception as error:
        raise ExtensionError(
            f"the {_KINDS[data['role']]} '{data['model_type']}' names the {key} '{data[key]}', which cannot be used: "
            f"{type(error).__name__}: {error}",
            f"Name a function of {home}, or package.module:function",
        ) from error
    return found


@functools.cache
def _data(model_type: str) -> dict[str, Any] | None:
    """The file of a model type, of any role; what is shipped first."""
    if any(model_type in names for names in _shipped().values()):
        data: dict[str, Any] = json.loads(_folder().joinpath(f"{model_type}.json").read_text())
        return data
    if model_type not in extensions.added(extensions.FAMILIES):
        return None
    data = {**extensions.load_json(extensions.FAMILIES, model_type), "model_type": model_type}
    role = str(data.get("role"))
    missing = [key for key in _SAYS[role] if key not in data] if role in _SAYS else []
    if role not in _SAYS or missing:
        what = f"does not say {', '.join(missing)}" if missing else f"has the role {data.get('role')!r}"
        raise ExtensionError(
            f"{model_type}.json of the package {extensions.origin(extensions.FAMILIES, model_type)} {what}",
            f"A file's role is one of {', '.join(_SAYS)}, and a {role if missing else 'vlm'} says "
            f"{', '.join(_SAYS[role if missing else 'vlm'])}",
        )
    return data


@functools.lru_cache(maxsize=1)
def _shipped() -> dict[str, tuple[str, ...]]:
    index: dict[str, list[str]] = {role: [] for role in _SAYS}
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
        data: the model type's file: its defaults stand for what the block leaves out, its traits are for readers.
    """

    def __init__(self, values: Mapping[str, Any], where: str, data: Mapping[str, Any] | None = None) -> None:
        self.values = values
        self.where = where
        self.defaults: Mapping[str, Any] = (data or {}).get("defaults", {})
        self.traits: Mapping[str, Any] = (data or {}).get("traits", {})

    def get(self, *names: str, default: Any = None) -> Any:
        """The first spelling the block sets; then the first that has a default; then `default`."""
        for source in (self.values, self.defaults):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        return default

    def block(self, name: str) -> Config:
        """A nested block of fields; empty where it is not set."""
        values = self.get(name)
        return Config(values if isinstance(values, Mapping) else {}, name)

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
