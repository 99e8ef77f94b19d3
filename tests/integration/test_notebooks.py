"""The notebooks run from their first cell to their last, as for a user, and are committed without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))
RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute(cwd=".")
nbformat.write(notebook, "run.ipynb")
"""


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    """What a cell wrote, and what it showed as text; without warnings."""
    shown = [out for out in cell["outputs"] if out.get("name") != "stderr"]
    return "".join("".join(out.get("text") or out.get("data", {}).get("text/plain", "")) for out in shown)


@pytest.fixture(scope="module")
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Code cells of a notebook after it ran in an empty folder, with the `plan` of this Python."""
    folder = tmp_path_factory.mktemp("notebook")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", RUN, str(request.param)]
    environment = {**os.environ, "PATH": path, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return cells(folder / "run.ipynb")


def test_there_are_two() -> None:
    assert [path.name for path in NOTEBOOKS] == ["calibrate.ipynb", "compare.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path))


@pytest.mark.parametrize("ran", NOTEBOOKS[:1], indirect=True)
def test_calibrate_and_look(ran: list[dict[str, Any]]) -> None:
    told = [printed(cell) for cell in ran]
    assert "Error" not in "".join(told)
    assert "limit=0.1" in told[2] and told[2].splitlines()[-1] in {"proven", "not proven"}
    assert any("image/png" in out.get("data", {}) for out in ran[3]["outputs"]), "the kept patches"
    assert any("image/png" in out.get("data", {}) for out in ran[4]["outputs"]), "the masking curves"
    assert "visual tokens in each layer" in told[5] and told[5].splitlines()[-1].strip() == "yes"


@pytest.mark.parametrize("ran", NOTEBOOKS[1:], indirect=True)
def test_compare_at_equal_flops(ran: list[dict[str, Any]]) -> None:
    told = [printed(cell) for cell in ran]
    shares = {line.split(": ")[1]: float(line.split("%")[0]) for line in told[1].splitlines()}
    scaled = [share for name, share in shares.items() if not name.startswith("dense")]
    assert len(scaled) >= 5 and max(scaled) - min(scaled) < 3, "in percent of the dense decoder"
    assert any("image/png" in out.get("data", {}) for out in ran[2]["outputs"])
    assert len(told[3].splitlines()) == 6 and told[4].splitlines()[0].startswith("yes")
