"""What an engine is told so that it does what a plan says: flags, environment, plugin, and what is lost on the way."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import ClassVar, Literal

from planner.document import Document
from planner.engines.carry import carried, dropped, lost_stages, stepped, visual_tokens
from planner.engines.facts import Engine, Route
from planner.engines.nearest import Nearest, nearest
from planner.errors import PlanMismatchError
from planner.plan import Plan
from planner.schedule import Count, Select, kept
from planner.spec import ModelSpec


class Handover(Document):
    """A plan for an engine, as `plan export` writes it.

    Attributes:
        engine: its name; `versions` of its package for which this was written.
        portable: ``exact``: as the plan was measured; ``approximate``: but for what is `lost`.
        plan_sha256, policy, model: of the plan.
        flags, environment: how the engine is told.
        plugin: what must be installed beside it.
        positions: of the tokens that are left, as the engine counts them.
        lost: what is not as it was measured, one clause each.
        command: ready to be run, but for names in capitals.
    """

    KIND: ClassVar[str] = "handover"
    DIGEST_FIELD: ClassVar[str] = "handover_sha256"
    REMAKE: ClassVar[str] = "Make it again with `plan export PLAN --to ENGINE`"

    engine: str
    versions: str
    portable: Literal["exact", "approximate"]
    plan_sha256: str
    policy: str
    model: str
    flags: dict[str, str]
    environment: dict[str, str]
    plugin: str | None
    positions: Literal["original", "packed"]
    lost: tuple[str, ...]
    command: str
    handover_sha256: str = ""


def hand_over(plan: Plan, engine: Engine, path: str | Path = "plan.json", model: str | Path | None = None) -> Handover:
    """A plan for an engine.

    Args:
        path: where the engine will find the plan, if it reads it.
        model: where it will find the model; None: by the id that the plan knows it by.

    Raises:
        PlanMismatchError: the plan changes nothing, or the engine cannot carry it. Then what would be lost is named,
            and the nearest plan of the same search that it can carry, with what was measured of it.
    """
    schedule = plan.decision.schedule
    if schedule.empty:
        raise PlanMismatchError("the plan changes nothing", f"Run {engine.title} on the model as it is")
    found = carried(engine, schedule, ModelSpec.from_config(plan.model.config), visual_tokens(plan))
    if found.route is None:
        lost = [] if schedule.before_decoder else [f"lost would be {'; '.join(lost_stages(schedule))}"]
        cause = f"{engine.title} cannot carry {plan.decision.policy}: {'; '.join([*found.why, *lost])}"
        raise PlanMismatchError(cause, _instead(nearest(plan, engine), engine))
    values = _values(plan, found.route, path, model or plan.model.id)
    environment = {name: text.format(**values) for name, text in found.route.environment.items()}
    flags = {name: text.format(**values) for name, text in found.route.flags.items()}
    spelled = " ".join(shlex.join(filter(None, pair)) for pair in flags.items())
    quoted = {name: shlex.quote(value) for name, value in values.items()}
    told = "".join(f"{name}={shlex.quote(value)} " for name, value in environment.items())
    return Handover(
        engine=engine.name,
        versions=f"{engine.package}{found.route.versions}",
        portable="approximate" if found.level == "approximate" else "exact",
        plan_sha256=plan.plan_sha256,
        policy=plan.decision.policy,
        model=plan.model.id,
        flags=flags,
        environment=environment,
        plugin=found.route.plugin,
        positions=found.route.positions or schedule.positions,
        lost=found.why,
        command=(told + found.route.command.format(**quoted, flags=spelled)).strip(),
    ).sealed()


def _values(plan: Plan, route: Route, path: str | Path, model: str | Path) -> dict[str, str]:
    """What the texts of a route are filled in with."""
    values = {"plan": str(path), "model": str(model)}
    entry = plan.decision.schedule.entry
    if entry is None:
        return values
    visual = visual_tokens(plan)
    if route.step is not None:
        share = stepped(dropped(entry, visual), route.step)
        values |= {"dropped": f"{share:g}", "percent": f"{100 * share:.0f}"}
    return {**values, "pivots": str(entry.pivots), "kept_tokens": _kept(entry, visual)}


def _kept(entry: Select, visual: int | None) -> str:
    if isinstance(entry.keep, Count):
        return f"{entry.keep.count:g}"
    return f"{kept(entry.keep, visual):g}" if visual else ""


def _instead(found: Nearest | None, engine: Engine) -> str:
    search = f"`plan calibrate --portable {engine.name}` searches what it can carry"
    if found is None:
        return f"None of the plans that were measured beside it is one that {engine.title} can carry; {search}"
    return (
        f"The nearest that it can carry is {found.policy}: {found.evidence}. Write it with `plan freeze PROFILE "
        f"--policy {found.policy}`; {search}"
    )
