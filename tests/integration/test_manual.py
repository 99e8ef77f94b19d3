"""The manual: it builds without a broken link, its commands are commands, and its Python runs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from planner.cli import cli
from tests import toy

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Every command line of `plan` in a page's code, of which several may stand on one line."""
    text = page.read_text(encoding="utf-8")
    shells = [body for language, body in BLOCK.findall(text) if language in ("", "bash", "sh", "console")]
    shells += INDENTED.findall(BLOCK.sub("", text))
    lines = [line.strip() for shell in shells for line in shell.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|;|(?<!\S)\|(?!\S)", line)]
    return [part for part in parts if re.match(r"plan [a-z]", part)]


def understood(line: str) -> None:
    """Parse a command line as click does, without running it.

    Raises:
        click.UsageError: an option or argument that there is not.
    """
    line = re.sub(r"\$\{?\w+\}?", "4", re.sub(r"\$\{?\w+\}?(?=/)", "0", line))  # a scheduler's variables
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    verb = cli.get_command(click.Context(cli), words[0]) if words else None
    if verb is None:
        raise click.UsageError(f"no such verb in: {line}")
    with contextlib.suppress(click.exceptions.Exit):  # --help
        verb.make_context(words[0], words[1:])


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in commands(page):
        for word in shlex.split(line, comments=True):
            if word.startswith(("profiles/", "reports/")) and ">" not in line:
                assert (ROOT / word).exists(), f"{page.name}: {line}"
        try:
            understood(line)
        except click.ClickException as error:
            absent = ("does not exist", "there is no probe 'toy_attention'")  # files and packages of the reader's own
            if not isinstance(error, click.BadParameter) or not any(what in error.format_message() for what in absent):
                raise AssertionError(f"{page.name}: {line}: {error.format_message()}") from error


def _told(code: str) -> list[str]:
    """Lines of code without the empty ones, which a formatter moves."""
    return [line for line in code.splitlines() if line]


def test_a_command_that_is_none_is_found() -> None:
    with pytest.raises(click.UsageError):
        understood("plan calibrate MODEL --no-such-option")
    with pytest.raises(click.UsageError):
        understood("plan no-such-verb")


def test_the_manual_builds_without_a_broken_link(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert 'paths = ["."]' in settings
    (tmp_path / "zensical.toml").write_text(settings.replace('paths = ["."]', f'paths = ["{ROOT}"]'), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    for page in PAGES:
        assert f'"{page.name}"' in settings, f"{page.name} is in no part of the manual"
    written = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "allow_other_weights" in written, "the docstrings of planner.plan are missing"


def test_what_the_page_on_extending_shows_is_what_the_tests_use() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = [_told(body) for language, body in BLOCK.findall(page) if language == "python"]
    assert shown == [_told(part) for part in (toy.POLICY, toy.PROBE, toy.READERS)]


@pytest.mark.parametrize("page", [ROOT / "docs" / name for name in ("api.md", "cost.md", "quickstart.md")])
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("profiles", "reports"):
        os.symlink(ROOT / name, tmp_path / name)
    (tmp_path / "calibration").mkdir()
    shutil.copy(ROOT / "reports" / "reference" / "windowed" / "plan.json", tmp_path / "calibration")
    monkeypatch.chdir(tmp_path)
    found = [body for language, body in BLOCK.findall(page.read_text(encoding="utf-8")) if language == "python"]
    assert found
    names: dict[str, Any] = {}
    for block in found:
        exec(compile(block, page.name, "exec"), names)


def test_messages_that_the_manual_explains_are_messages() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("## Loading a model")[1]
    files = [path for room in ("planner", "calibrate") for path in (ROOT / room).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    said = re.sub(r'"\s*\n\s*f?"', "", code)
    for message in re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE):
        assert message in said, message
