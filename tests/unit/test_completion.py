"""What a shell completes: names that the package knows, asked by click's own mechanism."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete, get_completion_class

from planner.cli import VERBS, cli
from planner.cost.hardware import shipped_rows
from planner.engines import engine_names
from planner.policies import names, policy_class
from planner.spec import shipped


def completed(line: str, incomplete: str) -> list[str]:
    """Words that may stand in place of `incomplete` behind a line; ``FILES`` where the shell looks for paths."""
    found = ShellComplete(cli, {}, "plan", "_PLAN_COMPLETE").get_completions(line.split(), incomplete)
    return ["FILES" if one.type == "file" else one.value for one in found]


def test_verbs_and_what_can_be_listed() -> None:
    assert completed("", "") == list(VERBS)
    assert completed("ls", "p") == ["policies", "probes"]


def test_models_are_those_that_the_verb_can_take() -> None:
    models = ["reference/windowed", "reference/plain", "reference/pretrained"]
    assert completed("report", "") == ["FILES", *shipped(), *models]
    assert completed("calibrate", "reference/") == ["FILES", *models], "shipped facts have no weights"
    assert completed("run plan.json --model", "ref") == ["FILES", *models]
    assert "llava-1.5-7b" in completed("validate plan.json --model", "llava")


@pytest.mark.parametrize("verb", ["show", "run", "bench", "evaluate", "validate", "export", "push", "serve"])
def test_plans_are_files_and_bundled_ones(verb: str) -> None:
    assert completed(verb, "ref") == ["FILES", "reference/plain", "reference/pretrained", "reference/windowed"]


@pytest.mark.parametrize("line", ["report llava-1.5-7b --policy", "report x --sweep", "freeze profile.json --policy"])
def test_policies_and_then_their_keys(line: str) -> None:
    assert completed(line, "") == list(names())
    assert completed(line, "pr") == ["prellm"]
    assert completed(line, "fastv:") == [f"fastv:{key}=" for key in policy_class("fastv").model_fields]
    assert completed(line, "fastv:k=2,r") == ["fastv:k=2,ratio=", "fastv:k=2,rank_by="]
    assert completed(line, "fastv:ratio=0.5,r") == ["fastv:ratio=0.5,rank_by="], "a key is given once"
    assert completed(line, "prellm:keep=0.5+vt") == ["prellm:keep=0.5+vtw"]
    assert completed(line, "prellm+vtw:") == ["prellm+vtw:k="]
    assert completed(line, "nothing:k") == []


def test_a_comparison_may_be_with_all() -> None:
    assert completed("evaluate plan.json --policy", "a") == ["all"]
    assert completed("evaluate plan.json --policy", "vtw+a") == [], "`all` is no part of a composition"


def test_devices_engines_conventions_and_metrics() -> None:
    assert completed("report x --hardware", "h100") == ["FILES", "h100-pcie", "h100-sxm"]
    assert completed("calibrate --hardware", "") == ["FILES", *shipped_rows(), "measured"]
    assert completed("export plan.json --to", "") == completed("calibrate --portable", "") == list(engine_names())
    assert completed("report x --convention", "c") == ["causal", "cdpruner"]
    assert completed("calibrate --metric", "l") == ["leading"]
    assert completed("report x --engine", "") == ["hf", "vllm", "ideal"]


def test_a_broken_file_of_options_does_not_disturb(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: [")
    assert completed(f"calibrate --config {tmp_path / 'run.yaml'} --metric", "an") == ["anls"]


@pytest.mark.parametrize("verb", VERBS)
def test_whatever_is_being_written_is_answered(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    for parameter in command.params:
        long = [word for word in parameter.opts if word.startswith("--")]
        completed(f"{verb} {long[0]}" if long else verb, "x")


def test_a_key_press_imports_no_torch() -> None:
    """As a shell asks: the answer is a type and a value a line."""
    script = (
        "import sys\nfrom planner.cli import main\ntry:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    asked = {"_PLAN_COMPLETE": "bash_complete", "COMP_WORDS": "plan report x --policy pyr", "COMP_CWORD": "4"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **asked}, check=False
    )
    assert (done.returncode, done.stdout) == (0, "plain,pyramiddrop\n"), done.stderr


def test_the_quick_start_says_how_a_shell_is_told() -> None:
    page = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")
    told = re.findall(r"_PLAN_COMPLETE=(\w+)_source plan", page)
    assert told == ["bash", "zsh", "fish"] and all(get_completion_class(shell) for shell in told)
