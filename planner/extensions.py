"""What other packages add: policies, probes, model families and hardware rows, by entry points.

A package names them in its ``pyproject.toml``:

    [project.entry-points."vlm_planner.policies"]
    toy = "toy_package.policy:Toy"          # a class; the left side is its name

    [project.entry-points."vlm_planner.families"]
    toy_vlm = "toy_package"                 # the package in which toy_vlm.json lies

Reading which entry points there are imports nothing; a package is imported when what it adds is asked for. What comes
with the planner cannot be replaced: its own names win.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

from planner.errors import ExtensionError

#: Classes (``package.module:Class``).
POLICIES, PROBES = "vlm_planner.policies", "vlm_planner.probes"
#: JSON files, by the package in which they lie.
FAMILIES, HARDWARE = "vlm_planner.families", "vlm_planner.hardware"


@functools.cache
def added(group: str) -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    """Entry points of a group by name, sorted; several where packages claim the same name."""
    found: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for point in sorted(metadata.entry_points(group=group), key=lambda point: point.name):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def load_class(group: str, name: str, kind: type) -> Any:
    """The class that a package adds under a name.

    Args:
        kind: what it must be a subclass of; its attribute `name` must be the entry point's.

    Raises:
        ExtensionError: the package cannot be imported, or adds something else; it is named.
    """
    point = _the_one(group, name)
    try:
        found = point.load()
    except Exception as error:
        raise _broken(point, f"{type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise _broken(point, f"'{point.value}' is no subclass of {kind.__module__}.{kind.__name__}")
    if getattr(found, "name", None) != name:
        raise _broken(point, f"the class calls itself '{getattr(found, 'name', '')}'")
    return found


def load_json(group: str, name: str) -> dict[str, Any]:
    """The JSON object in the file ``NAME.json`` of the package that adds it.

    Raises:
        ExtensionError: the package cannot be imported, or has no such file; it is named.
    """
    point = _the_one(group, name)
    try:
        found = json.loads((resources.files(point.value) / f"{name}.json").read_text(encoding="utf-8"))
    except Exception as error:
        raise _broken(point, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise _broken(point, f"{name}.json holds no JSON object")
    return found


def origin(group: str, name: str) -> str:
    """The package that adds something, for errors: ``toy 0.1``."""
    return " and ".join(_package(point) for point in added(group)[name])


def _the_one(group: str, name: str) -> metadata.EntryPoint:
    points = added(group)[name]
    if len(points) > 1:
        raise ExtensionError(
            f"{origin(group, name)} both add '{name}' to {group}", "Uninstall one of them, or rename what it adds"
        )
    return points[0]


def _package(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _broken(point: metadata.EntryPoint, why: str) -> ExtensionError:
    return ExtensionError(
        f"the package {_package(point)} adds '{point.name}' to {point.group}, which cannot be used: "
        f"{' '.join(why.split())}",
        "Mend the package or uninstall it",
    )
