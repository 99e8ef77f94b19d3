"""The import graph: no circle, arrows in the order that docs/architecture.md lists, and few of them."""

from __future__ import annotations

import pytest

from tests.imports import ROOT, arrows, cycle, imports

DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
#: Most arrows per package: what there was when it was sorted into rooms, leaves that many use, and some slack.
MOST = {"planner": 91, "planner.runtime": 26, "calibrate": 21}


def listed(package: str) -> list[str]:
    """Rooms of a package, in the document's order."""
    block = DOCUMENT.split(f"\n`{package}`:\n\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in block.splitlines()]


@pytest.mark.parametrize("package", MOST)
def test_arrows_point_down_the_documented_list(package: str) -> None:
    graph, order = arrows(package), listed(package)
    assert sorted(order) == sorted(graph), f"docs/architecture.md lists other rooms of {package} than there are"
    assert not cycle(graph)
    upward = [
        f"{room} -> {other}" for room in graph for other in graph[room] if order.index(other) <= order.index(room)
    ]
    assert not upward, f"imports against the order of docs/architecture.md: {upward}"


@pytest.mark.parametrize("package", MOST)
def test_arrows_stay_few(package: str) -> None:
    graph = arrows(package)
    assert sum(map(len, graph.values())) <= MOST[package]


def test_only_the_command_line_imports_calibrate() -> None:
    for path in (ROOT / "planner").rglob("*.py"):
        if path.parent.name != "cli":
            assert not [name for name in imports(path) if name.split(".")[0] == "calibrate"], path


def test_torch_stays_in_runtime_and_calibrate() -> None:
    """Imports inside functions are allowed: a verb that needs torch loads it when it runs."""
    for path in (ROOT / "planner").rglob("*.py"):
        if not {"runtime", "vllm_plugin"} & set(path.parts):
            top = {name.split(".")[0] for name in imports(path, nested=False)}
            assert not top & {"torch", "transformers", "calibrate"}, path


def test_a_circle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
