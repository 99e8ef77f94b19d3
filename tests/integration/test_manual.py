"""The manual: it builds without a broken link, and its commands are commands. `test_manual_python` runs its Python."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from planner.cli import cli
from tests import toy

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TOLD = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


#: Programs of others whose arguments are not looked at, and words that begin a line of `sh`.
FOREIGN = {
    *("accelerate", "aiperf", "cat", "cd", "docker", "git", "grep", "guidellm", "lmms-eval"),
    *("mypy", "pytest", "ruff", "source", "torchrun", "vllm"),
}
#: How many indented blocks of a page are no commands: listings, what a program prints, lines of a file.
LISTINGS = {"README.md": 1, "CONTRIBUTING.md": 4, "architecture.md": 4, "deciding.md": 1, "dense.md": 1}


def shells(page: Path) -> list[str]:
    """Blocks of commands: those that are marked so, and those that are indented and begin with a program."""
    text = page.read_text(encoding="utf-8")
    marked = [body for language, body in BLOCK.findall(text) if language in ("bash", "sh", "console")]
    return marked + [one for one in indented(page) if _program(one.strip()) in {"plan", "pip", "python", *FOREIGN}]


def indented(page: Path) -> list[str]:
    """Indented blocks, without the options of what is made from docstrings."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return INDENTED.findall(re.sub(r"^:::.*\n(?:    .*\n)*", "", text, flags=re.MULTILINE))


def _program(line: str) -> str:
    """The first word that sets no variable; `python3` and `python` are one."""
    words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    return words[0].replace("python3", "python") if words else ""


def commands(page: Path, program: str = "plan") -> list[str]:
    """Every command line of a program in a page's code, of which several may stand on one line."""
    lines = [line.strip() for shell in shells(page) for line in shell.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|;|(?<!\S)\|(?!\S)", line)]
    return [part for part in parts if _program(part) == program]


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


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.name)
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


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.name)
def test_every_line_of_a_shell_is_a_command(page: Path) -> None:
    """So that what the other tests look at is all there is."""
    assert len(indented(page)) - len([one for one in shells(page) if one in indented(page)]) == LISTINGS.get(
        page.name, 0
    )
    for shell in shells(page):
        for line in shell.replace("\\\n", " ").splitlines():
            if line.strip() and not line.strip().startswith("#"):
                program = _program(line.partition(" #")[0].strip())
                known = program in {"plan", "pip", "python", *FOREIGN} or (ROOT / program).is_file()
                assert known, f"{page.name}: {line}"


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.name)
def test_what_pip_installs_can_be_asked_for(page: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^([\w-]+) = \[", project.split("[project.optional-dependencies]")[1], re.MULTILINE))
    for line in commands(page, "pip"):
        words = shlex.split(line, comments=True)
        assert words[1] == "install", line
        options = {key: value for key, value in itertools.pairwise(words) if key in ("-c", "-r", "--index-url")}
        assert {options.get("-c"), options.get("-r")} <= {
            None,
            "constraints.txt",
            ".venv/constraints.txt",
            "requirements.txt",
        }
        for word in words[2:]:
            if word.startswith("-") or word in options.values():
                continue
            if "--index-url" in options:  # the build of torch for CPUs, of the release that the tests use
                assert word in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(), line
            asked = Requirement(word.replace(".", "vlm-planner", 1) if word.startswith(".") else word)
            assert asked.name != "vlm-planner" or asked.extras <= extras, line


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.name)
def test_programs_in_python_are_there_and_know_their_options(page: Path) -> None:
    for line in commands(page, "python"):
        words = shlex.split(line, comments=True)
        words = words[1 + next(i for i, word in enumerate(words) if word.startswith("python")) :]
        if words[:2] == ["-m", "venv"] or words[0] == "run.py":  # Python's own, and a harness's
            continue
        assert words[0] == "-m" or (ROOT / words[0]).is_file(), line
        place = words[1].replace("planner.profiles", "profiles").replace(".", "/")
        files = [path for path in (ROOT / f"{place}.py", ROOT / place / "__main__.py") if path.is_file()]
        assert files, f"{page.name}: {line}"
        source = files[0].read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words[2:] if word.startswith("--")), f"{page.name}: {line}"


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
    data = [json.loads(body) for language, body in BLOCK.findall(page) if language == "json"]
    assert data == [toy.FAMILY, toy.HARDWARE]
    (entries,) = (body for language, body in BLOCK.findall(page) if language == "toml")
    spelled = entries.replace("project.entry-points.", "").replace('"', "")  # as a distribution's metadata has them
    assert _told(spelled) == _told(toy.ENTRY_POINTS)


def test_messages_that_the_manual_explains_are_messages() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("## Loading a model")[1]
    files = [path for room in ("planner", "calibrate") for path in (ROOT / room).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    said = re.sub(r'"\s*\n\s*f?"', "", code)
    for message in re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE):
        assert message in said, message
