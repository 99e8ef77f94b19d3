"""The packages: a source distribution that is whole, and a wheel that works where there is no checkout.

Both are built from a copy, by `python -m build`, which fetches setuptools. What the wheel needs is taken from this
environment, so that nothing else is fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli import cli

ROOT = Path(__file__).parents[2]
#: All that a build reads.
SOURCES = ("planner", "calibrate", "profiles", "reports/reference", "pyproject.toml", "README.md", "LICENSE")
VERSION = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[0]


def built(tree: Path, *kinds: str) -> Path:
    """The folder with what `python -m build` makes of a tree."""
    command = [sys.executable, "-m", "build", *kinds, "--outdir", str(tree / "made"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return tree / "made"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, so that it leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    """The wheel that the source distribution makes, as a release makes it."""
    (found,) = built(tree).glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True)
    return folder


def run(site: Path, folder: Path, *arguments: str) -> str:
    """What the installed `plan` prints, in an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(site / "bin" / "plan"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(*arguments: str) -> str:
    done = CliRunner().invoke(cli, list(arguments), prog_name="plan", catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_source_distribution_makes_the_wheel_that_the_tree_makes(tree: Path, wheel: Path) -> None:
    assert (wheel.parent / f"vlm_planner-{VERSION}.tar.gz").is_file()
    second = tree / "second"
    second.mkdir()
    shutil.move(wheel.parent / wheel.name, second / wheel.name)
    by_source = zipfile.ZipFile(second / wheel.name)
    (direct,) = built(tree, "--wheel").glob("*.whl")
    by_tree = zipfile.ZipFile(direct)
    assert sorted(by_source.namelist()) == sorted(by_tree.namelist())
    changed = [name for name in by_tree.namelist() if by_source.read(name) != by_tree.read(name)]
    assert not [name for name in changed if not name.endswith("/RECORD")]


def test_nothing_is_read_from_the_checkout(site: Path, tmp_path: Path) -> None:
    script = (
        "import sys, planner, calibrate.pipeline.run, planner.serving, planner.report.page, planner.profiles\n"
        "from planner import load_plan, Profile\n"
        "load_plan('reference/windowed'), Profile.load('reference/plain').arrays\n"
        "names = [name for name in sys.modules if name.split('.')[0] in ('planner', 'calibrate')]\n"
        "own = [sys.modules[name].__file__ for name in names if sys.modules[name].__file__]\n"
        "print(planner.__version__, len(own) > 50, [file for file in own if not file.startswith(sys.argv[1])])"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", script, str(site)]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == f"{VERSION} True []\n"
    files = [path for room in ("planner", "calibrate") for path in (site / room).rglob("*") if path.is_file()]
    assert not [path.name for path in files if str(ROOT).encode() in path.read_bytes()]


def test_what_it_prints_is_what_the_checkout_prints(site: Path, tmp_path: Path) -> None:
    assert run(site, tmp_path, "--version") == f"plan, version {VERSION}\n"
    assert run(site, tmp_path, "--help").split() == here("--help").split()
    report = ("report", "llava-1.5-7b", "--policy", "fastv:k=2,ratio=0.75", "--hardware", "h100-sxm")
    for asked in (report, ("show", "reference/windowed"), ("ls", "models"), ("schema", "plan")):
        assert run(site, tmp_path, *asked) == here(*asked)
    assert "<svg" in run(site, tmp_path, *report, "--format", "html"), "templates and styles are there"


def test_the_bundled_model_answers_under_its_plan(site: Path, tmp_path: Path) -> None:
    picture = site / "planner" / "profiles" / "reference" / "easy_vqa" / "images" / "evaluation" / "478.png"
    asked = ("run", "reference/windowed", "--image", str(picture), "--prompt", "Is there a circle?")
    assert run(site, tmp_path, *asked) == "yes\n"
