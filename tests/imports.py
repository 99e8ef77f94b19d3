"""Import arrows between the rooms of a package: `python -m tests.imports planner.runtime calibrate`.

A room is one entry of the package's folder: a sub-folder with all that is below it, or a single file. An arrow runs
from one room to another that a module of the first imports; imports for type checkers do not count, imports inside
functions do.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def arrows(package: str) -> dict[str, set[str]]:
    """Room to the rooms it imports, for every room of a package.

    Args:
        package: dotted name, such as ``planner.runtime``.
    """
    folder = ROOT.joinpath(*package.split("."))
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts == ("__init__",):
            continue
        found.setdefault(parts[0], set()).update(_rooms(path, package) - {parts[0]})
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def imports(path: Path, nested: bool = True) -> list[str]:
    """Dotted names that a module imports; with `nested` also inside functions."""
    return list(_imported(ast.parse(path.read_text()), nested))


def _rooms(path: Path, package: str) -> set[str]:
    rooms = set()
    for name in imports(path):
        if name.startswith(package + "."):
            rooms.add(name[len(package) + 1 :].split(".")[0])
    return {room for room in rooms if _exists(package, room)}


def _exists(package: str, room: str) -> bool:
    folder = ROOT.joinpath(*package.split("."))
    return (folder / room).is_dir() or (folder / f"{room}.py").is_file()


def _imported(node: ast.AST, nested: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if not nested and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from _imported(child, nested)


def main(packages: list[str]) -> None:
    """Print rooms, arrows and circles of each package."""
    for package in packages:
        graph = arrows(package)
        print(f"{package}: {len(graph)} rooms, {sum(map(len, graph.values()))} arrows", end="")
        print(f", a circle: {' -> '.join(cycle(graph))}" if cycle(graph) else ", no circle")
        for room, others in graph.items():
            if others:
                print(f"  {room} -> {', '.join(sorted(others))}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["planner.runtime", "calibrate"])
