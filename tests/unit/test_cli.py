"""The command line: lazy, clear, and honest about its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import resources

import click
import pytest

from planner.cli import VERBS, cli
from tests.unit.test_plan import make_plan


def plan(*arguments: str, **options):
    return subprocess.run(
        [sys.executable, "-c", "from planner.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_help_imports_neither_torch_nor_transformers():
    script = (
        "import sys\nfrom planner.cli import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = {'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


def test_summaries_are_whole_at_80_columns():
    listing = plan("--help", env={**os.environ, "COLUMNS": "80"}).stdout.split("Commands:\n")[1]
    summaries = {line.split()[0]: line for line in listing.splitlines() if line.startswith("  ")}
    assert set(summaries) == set(VERBS), "a summary is wrapped, or a verb is missing"
    for verb, line in summaries.items():
        assert line.endswith(".") and not line.endswith("..."), f"the summary of {verb} is cut: {line}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help_and_every_argument_is_named_in_it(verb):
    command = cli.get_command(click.Context(cli), verb)
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert not [option.opts for option in options if not option.help]
    for argument in (parameter for parameter in command.params if isinstance(parameter, click.Argument)):
        for name in re.findall(r"\w+", argument.metavar or argument.name.upper()):
            assert re.search(rf"\b{name}\b", command.help), f"the help of {verb} does not say what {name} is"


@pytest.mark.parametrize("document", ["plan", "profile", "export"])
def test_committed_schema_is_the_code_s(document):
    committed = resources.files("planner.profiles") / "schema" / f"{document}.schema.json"
    done = plan("schema", document)
    assert done.returncode == 0, done.stderr
    assert done.stdout == committed.read_text(), f"run: plan schema {document} > profiles/schema/{document}.schema.json"


def test_show_and_validate(tmp_path):
    make_plan().save(tmp_path / "plan.json")
    shown = plan("show", str(tmp_path / "plan.json"))
    assert shown.returncode == 0 and "visipruner:filter=3,keep=20,exit=7" in shown.stdout
    as_json = plan("show", str(tmp_path / "plan.json"), "--format", "json")
    assert json.loads(as_json.stdout) == make_plan().content()
    assert plan("validate", str(tmp_path / "plan.json")).returncode == 0


def test_refusals_are_one_line_without_traceback(tmp_path):
    make_plan().save(tmp_path / "plan.json")
    edited = (tmp_path / "plan.json").read_text().replace('"last": 3', '"last": 2')
    (tmp_path / "edited.json").write_text(edited)
    for arguments, words in (
        (("show", str(tmp_path / "edited.json")), "changed after it was written"),
        (("validate", str(tmp_path / "none.json")), "does not exist"),
        (("validate", str(tmp_path / "plan.json"), "--model", "llava-1.5-7b"), "the plan is for"),
    ):
        done = plan(*arguments)
        assert done.returncode == 1, (arguments, done.stderr)
        assert done.stdout == "" or "valid plan" in done.stdout
        assert done.stderr.startswith("Error: ") and words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_wrong_usage_is_exit_status_2():
    assert plan("show").returncode == 2
    assert plan("nonsense").returncode == 2
