"""What comes with the package is found by its name, and nothing else is taken for it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from planner import load_plan
from planner.bundled import bundled, plans
from planner.cli import cli
from planner.errors import InputError
from planner.profile import Profile
from tests.unit.test_plan import make_plan

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["windowed", "plain"])
def test_plans_and_profiles_by_name(name: str) -> None:
    committed = ROOT / "reports" / "reference" / name / "plan.json"
    assert load_plan(f"reference/{name}").plan_sha256 == json.loads(committed.read_text())["plan_sha256"]
    profile = Profile.load(f"reference/{name}")
    beside = Path(str(resources.files("planner.profiles"))) / "reference" / name
    assert profile.profile_sha256 == json.loads((beside / "profile.json").read_text())["profile_sha256"]
    assert profile.arrays.keys() == Profile.load(beside).arrays.keys() != set()
    assert f"reference/{name}" in plans()


def test_a_file_of_that_name_counts_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = make_plan()
    own.save(tmp_path / "reference" / "windowed" / "plan.json")
    assert load_plan("reference/windowed").plan_sha256 == own.plan_sha256
    assert bundled("other/windowed", "plan") == Path("other/windowed")


def test_what_is_not_bundled_is_refused() -> None:
    with pytest.raises(InputError, match="reference/none does not exist"):
        load_plan("reference/none")
    with pytest.raises(InputError, match="reference/none does not exist"):
        Profile.load("reference/none")


def test_a_profile_by_its_folder_has_its_tables(tmp_path: Path) -> None:
    profile = Profile.load("reference/windowed")
    profile.save(tmp_path / "run" / "profile.json")
    again = Profile.load(tmp_path / "run")
    assert again.arrays.keys() == profile.arrays.keys()
    for name, table in profile.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], table)  # nan is nan


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "reference/windowed"], 'load_plan("reference/windowed").apply(model)'),
        (["validate", "reference/windowed", "--model", "reference/windowed"], "weights included"),
        (["freeze", "reference/windowed", "--policy", "diverse:keep=0.25", "-o", "new.json"], "diverse:keep=0.25"),
        (["report", "reference/windowed"], "windowed"),
    ],
)
def test_verbs_take_names(arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and says in done.stdout
