"""What is installed is what is in the tree: every package is listed, and every data file's kind is shipped. What
releases it names what there is."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import click
import yaml

from planner.cli import cli

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
#: Folder on disk -> the package that it is installed as.
MAPPED = {"planner": "planner", "calibrate": "calibrate", "profiles": "planner.profiles"}
#: A package that has a folder elsewhere, and no Python in it.
ELSEWHERE = {"planner.profiles.reference.plans": "reports/reference"}
#: Beside data that is installed: drawings that only the repository shows.
LEFT_OUT = (".svg",)


def table(name: str) -> str:
    """The text of one table of pyproject.toml."""
    return PROJECT.split(f"[{name}]\n")[1].split("\n[")[0]


def packages() -> set[str]:
    """Every folder of Python files, by the name it is imported by."""
    found = set()
    for top, package in MAPPED.items():
        for file in (ROOT / top).rglob("__init__.py"):
            found.add(".".join([package, *file.parent.relative_to(ROOT / top).parts]))
    return found


def test_every_package_is_installed() -> None:
    listed = set(re.findall(r'"([\w.]+)"', table("tool.setuptools").split("packages = [")[1].split("]")[0]))
    assert packages() <= listed
    for name in listed:
        folder = ELSEWHERE.get(name, name.replace("planner.profiles", "profiles").replace(".", "/"))
        assert (ROOT / folder).is_dir(), name


def test_every_kind_of_data_file_is_installed() -> None:
    data = table("tool.setuptools.package-data")
    for top, package in MAPPED.items():
        for file in (ROOT / top).rglob("*"):
            if file.suffix in {".py", ".pyc", "", *LEFT_OUT} or not file.is_file() or "__pycache__" in file.parts:
                continue
            home = file.parent
            while not (home / "__init__.py").exists() and home != ROOT / top:
                home = home.parent
            candidates = [".".join([package, *home.relative_to(ROOT / top).parts]), package]
            shipped = False
            for owner in candidates:
                patterns = re.search(rf'^"{re.escape(owner)}" = \[(.*)\]$', data, re.MULTILINE)
                base = ROOT / top if owner == package else home
                name = file.relative_to(base).as_posix()
                for pattern in re.findall(r'"([^"]+)"', patterns[1]) if patterns else ():
                    shipped |= fnmatch(name, pattern) or fnmatch(name, pattern.removeprefix("**/"))
            assert shipped, f"{file.relative_to(ROOT)} would be missing after pip install"


def test_the_version_stands_in_one_place() -> None:
    version = re.findall(r'^version = "(.+)"$', PROJECT, re.MULTILINE)
    assert len(version) == 1
    others = [*(ROOT / "planner").rglob("*.py"), *(ROOT / "calibrate").rglob("*.py"), ROOT / "CITATION.cff"]
    assert not [path.name for path in others if version[0] in path.read_text(encoding="utf-8")]


def test_the_release_runs_commands_that_there_are() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))["jobs"]
    assert list(jobs) == ["build", "publish"] and jobs["publish"]["needs"] == "build"
    steps = jobs["build"]["steps"]
    lines = [line for step in steps for line in step.get("run", "").splitlines()]
    assert "python -m build" in lines
    assert any(line.endswith("/dist/*.whl") for line in lines), "the wheel itself is tried"
    asked = [shlex.split(line)[1:] for line in lines if line.startswith("plan ")]
    for verb, *arguments in (words for words in asked if words != ["--version"]):
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        command.make_context(verb, arguments)
    (kept,) = (step["with"] for step in steps if "upload-artifact" in step.get("uses", ""))
    (taken,) = (step["with"] for step in jobs["publish"]["steps"] if "download-artifact" in step.get("uses", ""))
    assert kept == taken, "what is published is what was tried"


def test_the_image_copies_what_there_is() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    copied = [place for line in lines if line.startswith("COPY ") for place in line.split()[1:-1]]
    assert all((ROOT / place).exists() for place in copied)
    roots = {place.split("/")[0] for place in re.findall(r'= "([\w/]+)"', table("tool.setuptools.package-dir"))}
    assert roots <= {place.split("/")[0] for place in copied}, "every package's folder is there to be installed"
    (run,) = (line for line in lines if line.startswith("RUN "))
    assert "'.[serve]'" in run and "\nserve = [" in PROJECT
    assert (ROOT / "constraints.txt").read_text(encoding="utf-8").count("\ntorch==") == 1, "which the image asks for"
    entry = next(line for line in lines if line.startswith("ENTRYPOINT "))
    assert json.loads(entry.removeprefix("ENTRYPOINT ")) == ["plan"] and table("project.scripts").startswith("plan = ")
