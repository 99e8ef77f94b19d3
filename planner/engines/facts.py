"""What an engine does with visual tokens, read from its file."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from planner.errors import InputError, nearest
from planner.schedule import Merge, RankBy

#: How well an engine carries a plan: as it was measured, nearly so, or not.
Level = Literal["exact", "approximate", "no"]


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Route(_Fact):
    """One way in which an engine drops visual tokens before the decoder.

    Texts may hold ``{plan}``, ``{model}``, ``{dropped}``, ``{percent}``, ``{kept_tokens}`` and ``{pivots}``, which
    `planner.engines.handover` fills in.

    Attributes:
        name: how it is called in sentences.
        level: ``approximate`` where the engine chooses by code of its own.
        versions: of the engine's package, as pip spells them, or in words.
        families, image_rules: model types, and kinds of `planner.spec.facts.ImageRule`, that it works with; any where
            there are none.
        rank_by, merge, per: what an entry may ask for; anything where there are none.
        several: what becomes of several pictures where a plan has one budget for the prompt, and that is not in `per`.
        positions: of the tokens that are left; None: as the plan has them. `only_positions`: a plan with others is not
            taken.
        step: the budget is a share of the tokens, in multiples of this; None where it takes numbers too.
        limit: the budget is a limit on the tokens of a picture, which smaller ones do not reach.
        differs: what is not as the plan has it, whatever the plan.
        flags, environment: how the engine is told.
        plugin: what must be installed beside it.
        command: ready to be run, but for names in capitals.
    """

    name: str
    level: Literal["exact", "approximate"]
    versions: str
    families: tuple[str, ...] = ()
    image_rules: tuple[str, ...] = ()
    rank_by: tuple[RankBy, ...] = ()
    merge: tuple[Merge, ...] = ()
    per: tuple[Literal["prompt", "picture", "tile"], ...] = ()
    several: str = "each of several pictures in a prompt gets the budget; the plan has one for all"
    positions: Literal["original", "packed"] | None = None
    only_positions: bool = False
    step: Annotated[float, Field(gt=0, lt=1)] | None = None
    limit: bool = False
    differs: tuple[str, ...] = ()
    flags: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    plugin: str | None = None
    command: str

    @property
    def settings(self) -> dict[str, str]:
        """Parameters of a policy under which it does what this route does, and a search measures that."""
        return {
            **({"positions": self.positions} if self.positions else {}),
            **({"per": self.per[0]} if self.per else {}),
        }


class Engine(_Fact):
    """An engine.

    Attributes:
        name, title: on the command line, and in sentences.
        package: what `Route.versions` are versions of.
        rigid: why its decoder's layers cannot be told apart, a clause; empty where they can, and any schedule runs.
        routes: in the order in which they are tried.
        sources: where the facts are from.
    """

    name: str
    title: str
    package: str
    rigid: str = ""
    routes: tuple[Route, ...]
    sources: tuple[str, ...]


@functools.cache
def engine_names() -> tuple[str, ...]:
    """Engines that a plan can be handed to, sorted."""
    files = (resources.files("planner.profiles") / "exports").iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


@functools.cache
def engine(name: str) -> Engine:
    """An engine by name.

    Raises:
        InputError: there is none.
    """
    if name not in engine_names():
        raise InputError(
            f"there is no engine '{name}'", f"{nearest(name, engine_names())}Engines: {', '.join(engine_names())}"
        )
    text = (resources.files("planner.profiles") / "exports" / f"{name}.json").read_text(encoding="utf-8")
    return Engine.model_validate(json.loads(text))
