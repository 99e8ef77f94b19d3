"""Plans in a real vLLM, family by family; skipped where it is not installed (`docs/vllm.md`). Minutes each on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from tests.engines.families import PROMPTS, ROWS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("family", "selector"), ROWS)
def test_a_family_answers_as_on_transformers(family: str, selector: str, tmp_path: Path) -> None:
    """In a process of its own: vLLM takes a plan once."""
    command = [sys.executable, "-m", "tests.engines.families", family, "--selector", selector, "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, _, _, lengths, answers, difference, _ = (cell.strip() for cell in done.stdout.splitlines()[-1].split("|"))
    assert lengths == answers == f"{len(PROMPTS)} of {len(PROMPTS)}"
    assert float(difference) < 1e-3
