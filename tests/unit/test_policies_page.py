"""The page about policies states what the code has: every policy, its keys and defaults, what it costs."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from planner.cost import cost
from planner.policies import Policy, names, parse, policy_class
from planner.profile import Profile
from planner.schedule import dense
from planner.spec import ModelSpec
from planner.workload import Workload

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
#: Parts of the page that say what policies do.
KINDS = ("Before the decoder", "Inside the decoder", "Cost only", "Text and attention", "Controls")
KEYS = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .*\|$", PARTS["Keys"], re.MULTILINE))


def spelled(policy: type[Policy], key: str) -> str:
    default = policy.model_fields[key].default
    if default is PydanticUndefined:
        return "given"
    if isinstance(default, tuple):
        return "/".join(f"{item:g}" for item in default)
    return "auto" if default is None else str(default).lower() if isinstance(default, bool) else f"{default}"


def test_every_policy_is_told_once() -> None:
    told = [name for kind in KINDS for name in re.findall(r"^\| `(\w+)` \|", PARTS[kind], re.MULTILINE)]
    assert sorted(told) == list(names())
    assert list(KEYS) == list(names())


@pytest.mark.parametrize("name", names())
def test_keys_and_defaults(name: str) -> None:
    policy = policy_class(name)
    keys = [f"`{key}={spelled(policy, key)}`" for key in policy.model_fields]
    assert KEYS[name] == (", ".join(keys) or "none")


def test_papers_are_those_of_the_key() -> None:
    papers = (Path(__file__).parents[2] / "docs" / "papers.md").read_text(encoding="utf-8")
    known = {*re.findall(r"^### (.+)$", papers, re.MULTILINE), *re.findall(r"^\| (\w[\w-]+) \|", papers, re.MULTILINE)}
    rows = [row for kind in KINDS for row in re.findall(r"^\| `\w+` \|.*\| (.+?) \|$", PARTS[kind], re.MULTILINE)]
    assert {paper for row in rows for paper in row.split(", ")} - {"none"} <= known


def test_costs() -> None:
    spec = ModelSpec.from_config("llava-1.5-7b")
    workload = Workload(system_tokens=10, visual_tokens=576, text_tokens=64)
    dense = cost(spec, workload, parse("dense").schedule(spec))
    rows = re.findall(r"^\| `(.+?)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PARTS["What they cost"], re.MULTILINE)
    assert {part.name for text, *_ in rows for part in _parts(text)} == set(names()) - {"dense"}
    for text, flops, cached, choosing in rows:
        found = cost(spec, workload, parse(text).schedule(spec, workload))
        assert flops == f"{found.prefill_flops / dense.prefill_flops:.3f}", text
        assert cached == f"{found.kv_cache_bytes / dense.kv_cache_bytes:.3f}", text
        assert choosing == f"{found.prefill['selector'] / 1e9:.3f}", text
        assert found.prefill["selector"] / dense.prefill_flops < 1 / 300, text


def test_what_is_not_searched() -> None:
    path = resources.files("planner.profiles") / "reference" / "windowed" / "profile.json"
    profile = Profile.parse(json.loads(path.read_text(encoding="utf-8")))
    spec = ModelSpec.from_config(profile.model.config)
    told = re.search(r"Not searched are (.+?)\n\n", PARTS["Controls"], re.DOTALL)
    assert told is not None
    plain = [name for name in names() if not policy_class(name).quality]
    proposing = {name for name in plain if any(True for _ in policy_class(name).candidates(profile, spec))}
    assert set(re.findall(r"`(\w+)`", told[1])) == set(plain) - proposing
    rows = re.findall(r"^\| `(\w+)` \|", PARTS["Text and attention"], re.MULTILINE)
    assert set(rows) == set(names()) - set(plain), "those that accuracy alone is searched with"


def test_examples_parse() -> None:
    for text in re.findall(r"`((?:\w+:[\w.=,/]+\+?)+)`", PAGE):
        if text != "name:key=value,...":
            parse(text)


def _parts(text: str) -> tuple[Policy, ...]:
    return tuple(policy_class(part.partition(":")[0]) for part in text.split("+"))  # type: ignore[misc]


def test_a_schedule_of_ones_own_evicts_from_the_cache_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """64 visual tokens and 74 of text, in 32 layers of 524,288 bytes a token in all."""
    (example,) = re.findall(r"```python\n(.*?)```", PARTS["What they cost"], re.DOTALL)
    found: dict[str, Any] = {}
    exec(example, found)
    assert int(capsys.readouterr().out) == (64 + 74) * 524_288
    spec, workload = ModelSpec.from_config("llava-1.5-7b"), Workload(visual_tokens=576)
    dear, cheap = (cost(spec, workload, schedule).prefill for schedule in (dense(32), found["schedule"]))
    assert {**cheap, "selector": 0} == {**dear, "selector": 0} and cheap["selector"] > 0
    assert f"{(64 + 74) / 650:.3f}" in PARTS["What they cost"]
