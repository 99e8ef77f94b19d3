"""What is installed is what is in the tree: every package is listed, and every data file's kind is shipped."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

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
