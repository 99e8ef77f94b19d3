"""Plans on the Hugging Face Hub: the real client against a hub on this machine, and then without any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from calibrate.inputs.bundled import reference_path
from planner import load_plan
from planner.errors import InputError
from planner.hub import Reference, reference, repository
from planner.plan import Plan
from planner.profile import Profile
from tests.fake_hub import FakeHub, fake_hub
from tests.unit.test_engines import measured, plan_for, rung

POLICY = "diverse:keep=0.25"


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as found:
        yield found


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan_for("llava-1.5-7b", POLICY, measured([rung(POLICY, 0.3, 0.0047, True)], []))


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from planner.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_plan_goes_to_the_hub_and_comes_back(hub: FakeHub, made: Plan, tmp_path: Path) -> None:
    """With its profile; a newer push does not change what a revision names, and a known revision needs no hub."""
    made.save(tmp_path / "plan.json")
    profile = reference_path("windowed") / "profile.json"
    here = hub.environment(tmp_path / "home")
    done = run(here, "push", tmp_path / "plan.json", "team/plans", "--profile", profile, "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hf://team/plans\n" and "team/plans" in hub.private
    assert sorted(hub.commits["team/plans"][0][1]) == [
        "README.md", "plan.json", "profile.json", "profile.safetensors",
    ]  # fmt: skip

    other = plan_for("llava-1.5-7b", "dart:keep=0.25")
    other.save(tmp_path / "other.json")
    assert run(here, "push", tmp_path / "other.json", "team/plans").returncode == 0
    first = hub.commits["team/plans"][0][0]
    shown = run(here, "show", "hf://team/plans", "--format", "json")
    assert Plan.parse(json.loads(shown.stdout)) == other
    told = run(here, "show", f"hf://team/plans@{first}").stdout
    assert "max_min_distance" in told and f'load_plan("hf://team/plans@{first}")' in told
    for verb in (("validate",), ("export", "--to", "vllm", "-o", tmp_path / "vllm.json"), ("report",)):
        name, *rest = verb
        done = run(here, name, f"hf://team/plans@{first}", *rest)
        assert done.returncode == 0, (verb, done.stderr)

    frozen = run(here, "freeze", f"hf://team/plans@{first}", "--policy", "vtw:k=6", "-o", tmp_path / "frozen.json")
    assert frozen.returncode == 0, frozen.stderr
    assert load_plan(tmp_path / "frozen.json").model == Profile.load(profile).model, "the profile beside the plan"

    told = json.loads((tmp_path / "vllm.json").read_text())
    assert told["environment"] == {"VLM_PLAN": f"hf://team/plans@{first}"}

    pulled = tmp_path / "pulled"
    done = run(here, "pull", f"team/plans@{first}", "-o", pulled / "plan.json", "--profile", pulled / "profile.json")
    assert done.returncode == 0, done.stderr
    assert load_plan(pulled / "plan.json") == made
    back = Profile.load(pulled / "profile.json")
    assert back == Profile.load(profile) and sorted(back.arrays) == sorted(Profile.load(profile).arrays)

    offline = {**here, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    before = len(hub.requests)
    assert "max_min_distance" in run(offline, "show", f"hf://team/plans@{first}").stdout
    assert run(offline, "show", f"hf://team/plans@{'f' * 40}").returncode == 1, "that revision was never fetched"
    assert len(hub.requests) == before


def test_the_card_holds_the_evidence(hub: FakeHub, made: Plan, tmp_path: Path) -> None:
    made.save(tmp_path / "plan.json")
    assert run(hub.environment(tmp_path), "push", tmp_path / "plan.json", "team/card").returncode == 0
    card = ModelCard(hub.commits["team/card"][0][1]["README.md"].decode())
    assert card.data.to_dict() == {
        "library_name": "vlm-planner",
        "base_model": "llava-1.5-7b",
        "tags": ["vlm-planner", "vision-language-model", "token-pruning", "llava"],
    }
    assert 'load_plan("hf://team/card")' in card.text
    row = next(line for line in card.text.splitlines() if line.startswith(f"| {POLICY}"))
    assert "0.0047" in row and row.endswith(" yes |"), "the ladder, as a Markdown table"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pull", "team/nothing"), "plan.json of hf://team/nothing could not be read"),
        (("pull", "team/empty@v2"), "RevisionNotFoundError"),
        (("pull", "team/empty"), "EntryNotFoundError"),
        (("show", "hf://team"), "names no repository"),
        (("pull", "a b"), "'a b' names no repository"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line(hub: FakeHub, tmp_path: Path, arguments, says: str) -> None:
    hub.commits.setdefault("team/empty", [("0" * 40, {"README.md": b""})])
    done = run(hub.environment(tmp_path), *arguments)
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert done.stderr.strip().count("\n") == 0 and "Traceback" not in done.stderr


def test_a_push_without_a_token_is_refused(hub: FakeHub, made: Plan, tmp_path: Path) -> None:
    made.save(tmp_path / "plan.json")
    stranger = {**hub.environment(tmp_path), "HF_TOKEN": "hf_of_somebody_else"}
    done = run(stranger, "push", tmp_path / "plan.json", "team/plans")
    assert done.returncode == 1 and "could not be written" in done.stderr and "hf auth login" in done.stderr


def test_a_changed_plan_on_the_hub_is_refused(hub: FakeHub, made: Plan, tmp_path: Path) -> None:
    text = json.dumps({**made.content(), "created_with": {"python": "0"}})
    hub.commits["team/edited"] = [("1" * 40, {"plan.json": text.encode()})]
    done = run(hub.environment(tmp_path), "pull", "team/edited", "-o", tmp_path / "plan.json")
    assert done.returncode == 1 and "was changed after it was written" in done.stderr
    assert not (tmp_path / "plan.json").exists()


def test_references() -> None:
    assert reference("hf://a/b@v1.0") == reference(Path("hf://a/b@v1.0")) == Reference("a/b", "v1.0")
    assert reference("hf://a/b") == repository("a/b") == Reference("a/b") == repository("hf://a/b/")
    assert reference("plan.json") is None and reference("/hf:/a/b") is None
    assert str(Reference("a/b", "main")) == "hf://a/b@main"
    for wrong in ("hf://a", "hf://a/b/c", "hf://a/b@", "hf:///etc/passwd"):
        with pytest.raises(InputError, match="names no repository"):
            reference(wrong)
