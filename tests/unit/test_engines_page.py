"""docs/engines.md: its table is what the files in profiles/exports say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from planner.engines import carried, engine, engine_names
from planner.errors import UnsupportedModelError
from planner.policies import names, parse
from planner.spec import ModelSpec, shipped_model
from planner.workload import Workload
from tests.unit.test_engines import spelled

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
ROWS = [
    [cell.strip() for cell in row.split("|")[1:-1]] for row in PAGE.splitlines() if re.match(r"^\| `[\w-]+` \|", row)
]
#: Shipped models that routes are for.
MODELS = {
    "vllm": ["llava-1.5-7b", "qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"],
    "openvino": ["qwen2.5-vl-7b", "qwen3-vl-8b"],
    "trt-edge": ["qwen3-vl-8b"],
    "llamacpp": ["pixtral-12b"],
}


@pytest.mark.parametrize("name", engine_names())
def test_a_row_for_every_route(name: str) -> None:
    rows = [row for row in ROWS if row[0] == f"`{name}`"]
    routes = engine(name).routes
    assert [row[5].strip("`") for row in rows] == [route.versions.strip() for route in routes]
    for row, route in zip(rows, routes, strict=True):
        assert row[4] == (route.positions or ("as in the plan" if name == "transformers" else "as in the model"))
        told = " ".join([*route.flags, *route.flags.values(), *route.environment])
        for flag in re.findall(r"`([^`]+)`", row[3]):
            assert all(word.partition("=")[0] in told for word in flag.split()), flag


@pytest.mark.parametrize("name", MODELS)
def test_the_policies_of_a_row(name: str) -> None:
    told = {policy for row in ROWS if row[0] == f"`{name}`" for policy in re.findall(r"`([\w]+)`", row[1])}
    found = set()
    for model in MODELS[name]:
        spec = ModelSpec.from_config(shipped_model(model)["config"])
        for policy in set(names()) - {"dense"}:
            try:
                schedule = parse(spelled(policy)).schedule(spec, Workload(visual_tokens=144))
            except UnsupportedModelError:  # of what only some vision encoders do
                continue
            if carried(engine(name), schedule, spec, 144).route is not None:
                found.add(policy)
    assert told == found
