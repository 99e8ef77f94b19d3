"""What a policy is: a frozen, named set of parameters that becomes a schedule. One policy, one file, one class.

A subclass registers itself under its `name`, and is written on a command line as ``name:key=value,...``; lists as
``8/16/24``.
"""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from planner.errors import InputError
from planner.schedule import Count, Fraction, Keep, Schedule

if TYPE_CHECKING:
    from planner.spec import ModelSpec
    from planner.workload import Workload

#: Name -> class, in the order of registration.
REGISTRY: dict[str, type[Policy]] = {}


class Policy(BaseModel):
    """Parameters of a token policy.

    Attributes:
        name: how it is called on a command line and in tables.
        summary: one line for ``plan ls policies``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str]
    summary: ClassVar[str]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        REGISTRY[cls.name] = cls

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule:
        """The schedule of this policy on a model.

        Args:
            spec: the model's facts.
            workload: what is asked; only policies that budget in tokens need it.
            profile: what calibration found, for policies that take parameters from it.

        Raises:
            InputError: a parameter does not fit the model or the workload.
        """
        raise NotImplementedError

    def resolve(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Policy:
        """The policy with every parameter settled that it takes from workload and profile, as a plan states it.

        Itself, unless a subclass has such parameters.

        Raises:
            InputError: one cannot be settled.
        """
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _split_lists(cls, value: Any, info: Any) -> Any:
        if isinstance(value, str) and _is_list(cls.model_fields[info.field_name].annotation):
            return [part for part in value.split("/") if part]
        return value

    def __str__(self) -> str:
        """The spelling that `parse` reads back."""
        shown = []
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if key in self.model_fields_set or value != field.default:
                text = "/".join(_spell(item) for item in value) if isinstance(value, tuple) else _spell(value)
                shown.append(f"{key}={text}")
        return f"{self.name}:{','.join(shown)}" if shown else self.name

    @classmethod
    def make(cls, values: dict[str, str]) -> Policy:
        """A policy from its spelled parameters.

        Raises:
            InputError: an unknown key (the nearest valid one is named), a missing one, or a value that makes no sense.
        """
        for key in values:
            if key not in cls.model_fields:
                keys = ", ".join(cls.model_fields) or "none"
                raise InputError(
                    f"policy '{cls.name}' has no key '{key}'", f"{nearest(key, cls.model_fields)}Its keys: {keys}"
                )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = next((str(part) for part in first["loc"] if part in cls.model_fields), "")
            message = first["msg"].removeprefix("Value error, ")
            given = f" (given '{values[key]}')" if key in values else ""
            raise InputError(
                f"policy '{cls.name}': {key + ': ' if key else ''}{message}{given}",
                f"Its keys: {', '.join(cls.model_fields)}",
            ) from error


def nearest(word: str, known: Any) -> str:
    """A hint that names the known word most like `word`, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'? " if near else ""


def keep_of(value: float) -> Keep:
    """A budget as users write it: below 1 a share of the tokens present, else a number of tokens."""
    if 0 < value < 1:
        return Fraction(fraction=value)
    return Count(count=int(value) if float(value).is_integer() else value)


def check_layer(policy: str, key: str, layer: float, layers: int) -> None:
    """Refuse a layer outside ``[0, layers)``.

    Raises:
        InputError: it is.
    """
    if not 0 <= layer < layers:
        raise InputError(
            f"policy '{policy}': {key}={_spell(layer)} is outside the model's layers 0 to {layers - 1}",
            f"Choose {key} below {layers}",
        )


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _is_list(annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_is_list(part) for part in typing.get_args(annotation))
    return typing.get_origin(annotation) is tuple
