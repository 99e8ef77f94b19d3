"""What a policy is: a frozen, named set of parameters that becomes a schedule. One policy, one file, one class.

A subclass registers itself under its `name`, and is written on a command line as ``name:key=value,...``; lists as
``8/16/24``. `schedule` is all that it must say. The rest of what reports, comparisons and the decision ask of a policy
has a default here: nothing to turn to a cost (`scaled`), its scaled forms to propose (`candidates`), no fast path
(`layout`).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from planner.errors import InputError, nearest
from planner.policies.on_model import OnModel
from planner.schedule import Count, Fraction, Keep, Schedule

if TYPE_CHECKING:
    from planner.cost.sweep_layout import SweepColumns, SweepLayout
    from planner.profile import Profile
    from planner.spec import ModelSpec
    from planner.workload import Workload

P = TypeVar("P", bound="Policy")
#: Name -> class, in the order of registration. `planner.policies.known` adds those of other packages.
REGISTRY: dict[str, type[Policy]] = {}
#: Depth of the models that published layers refer to.
PUBLISHED_DEPTH = 32


class Policy(OnModel, BaseModel):
    """Parameters of a token policy.

    Attributes:
        name: how it is called on a command line and in tables.
        summary: one line for ``plan ls policies``.
        variants: settings under which it is compared a second time: ``{"norm": {...}}`` makes NAME-norm of `scaled`.
        budget: the parameter that says how much goes. Members that differ in it alone are a `family`: of two, the
            cheaper drops what the dearer drops, and more.
        quality: it changes answers on purpose, so it is searched only where accuracy is the goal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str]
    summary: ClassVar[str]
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    budget: ClassVar[str] = "keep"
    quality: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            return  # a specialisation, or a base of several policies
        have = REGISTRY.setdefault(cls.name, cls)
        if (have.__module__, have.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(
                f"{cls.__module__}.{cls.__qualname__} calls itself '{cls.name}', as {have.__module__} does already",
                "Give it another name",
            )
        REGISTRY[cls.name] = cls  # defined again, as in a notebook

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

    @classmethod
    def scaled(cls, dropped: float) -> tuple[Policy, ...]:
        """Members of this policy that drop the more, the nearer `dropped` in [0, 1] is to 1: what is turned until it
        costs what another plan does (`calibrate.deciding.equal_cost`).

        Several where the first form cannot reach every cost; the first that can is used. Always as many, whatever
        `dropped` is. Empty: nothing in this policy can be turned to a cost.
        """
        return ()

    @classmethod
    def candidates(cls, profile: Profile, spec: ModelSpec) -> Iterable[Policy]:
        """What is worth executing on a model, as its profile proposes it: members of one `family` or of several.

        The search turns each family as far as answers allow, and lays the best of different policies over each other.
        By default the forms of `scaled`, and those of the variants. Empty: this policy proposes nothing.
        """
        from planner.policies.proposals import BUDGETS

        for share in BUDGETS:
            for form in cls.scaled(round(1 - share, 4)):
                for one in (form, *(form.model_copy(update=dict(of)) for of in cls.variants.values())):
                    yield one.fitted(spec)

    def fitted(self, spec: ModelSpec) -> Policy:
        """The nearest member that ranks where the model attends: itself, where no layer is recurrent."""
        return self

    def adapted(self, settings: Mapping[str, Any]) -> Policy:
        """This member with those of some settings that it has, such as how an engine counts positions."""
        return self.model_copy(update={key: settings[key] for key in settings if key in type(self).model_fields})

    def family(self) -> str:
        """What this member shares with those that differ in `budget` alone."""
        shared = {key: getattr(self, key) for key in type(self).model_fields if key != self.budget}
        return f"{self.name} {shared}"

    @classmethod
    def layout(cls, spec: ModelSpec, workload: Workload, given: SweepColumns, kind: Any) -> SweepLayout | None:
        """Many schedules at once, laid out as arrays: an optional fast path of sweeps, see `planner.cost.sweep_layout`.

        Args:
            given: keys to arrays of equal length; keys that are not there have their defaults.
            kind: dtype for numbers that costs are counted from.

        Returns:
            None where these parameters are not laid out, or one does not fit: each schedule is then made and costed by
            itself, which also refuses what is wrong.
        """
        return None

    @field_validator("*", mode="before")
    @classmethod
    def _split_lists(cls, value: Any, info: Any) -> Any:
        if isinstance(value, str) and value != "auto" and cls.takes_list(info.field_name):
            return [part for part in value.split("/") if part]
        return value

    @classmethod
    def takes_list(cls, key: str) -> bool:
        """Whether a parameter is a list, written ``8/16/24``."""
        return _is_list(cls.model_fields[key].annotation)

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
    def make(cls: type[P], values: Mapping[str, Any]) -> P:
        """A policy from its parameters, spelled or as values.

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


def keep_of(value: float) -> Keep:
    """A budget as users write it: below 1 a share of the tokens present, else a number of tokens."""
    if 0 < value < 1:
        return Fraction(fraction=value)
    return Count(count=int(value) if float(value).is_integer() else value)


def share_kept(dropped: float) -> float:
    """What `scaled` forms keep: neither everything nor nothing, which are no shares; one token in ten thousand less or
    more."""
    return min(max(round(1 - dropped, 4), 1e-4), 1 - 1e-4)


def relative_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Published layers on a model of another depth: the same relative depth, distinct, and at least 1."""
    chosen: list[int] = []
    for layer in layers:
        chosen.append(max(round(layer * depth / PUBLISHED_DEPTH), (chosen[-1] if chosen else 0) + 1))
    return tuple(chosen)


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
    if typing.get_origin(annotation) is Annotated:
        return _is_list(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_is_list(part) for part in typing.get_args(annotation))
    return typing.get_origin(annotation) is tuple
