"""The examples run as they are, and print what they promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "profiles" / "reference" / "easy_vqa"


def run(name: str, *arguments: object) -> str:
    """Standard output of an example, run as a user would."""
    command = [sys.executable, ROOT / "examples" / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested_and_told() -> None:
    names = {path.name for kind in ("*.py", "*.ipynb") for path in (ROOT / "examples").glob(kind)}
    told = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    files = (Path(__file__), Path(__file__).parent / "test_notebooks.py")
    tested = "".join(path.read_text(encoding="utf-8") for path in files)
    assert all(f"`{name}`" in told and f'"{name}"' in tested for name in names)


def test_pipeline() -> None:
    dense, planned = run("pipeline.py").splitlines()
    assert dense.split()[1] == planned.split()[1] == "yes"
    assert "[36, 36, " in planned, "the plan keeps 0.25 of 144 tokens before the decoder"


def test_a_batch_job_goes_on_where_it_stopped(tmp_path: Path) -> None:
    samples, answers = tmp_path / "samples.jsonl", tmp_path / "answers.jsonl"
    asked = [json.loads(line) for line in (DATA / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:11]]
    lines = [json.dumps({**one, "image": str(DATA / one["image"])}) for one in asked]
    samples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    answers.write_text(json.dumps({"planned": "said before"}) + "\n", encoding="utf-8")
    run("batch_job.py", samples, answers)
    found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert len(found) == 11 and found[0] == {"planned": "said before"}
    assert [one["planned"] == one["answer"] for one in found[1:]].count(True) >= 9


def test_threads() -> None:
    lines = run("threads.py").splitlines()
    assert len(lines) == 16 and all("(36 visual tokens in layer 0)" in line for line in lines)


def test_server() -> None:
    lines = run("server.py").splitlines()
    assert len(lines) == 4 and all(re.search(r" 2[23]\.?\d* of 144 visual tokens a layer$", line) for line in lines)
    said = [re.search(r"\? (\w+) \(dense: (\w+)\)", line) for line in lines]
    assert [one and one[1] for one in said] == [one and one[2] for one in said]
    samples = (DATA / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    assert [one and one[2] for one in said] == [json.loads(sample)["answer"] for sample in samples]


@pytest.mark.parametrize("policies", [(), ("pool:keep=0.25", "prellm:keep=0.5")])
def test_compare(policies: tuple[str, ...]) -> None:
    arguments = (ROOT / "profiles" / "reference" / "windowed", *policies) if policies else ()
    rows = run("compare.py", *arguments).splitlines()[2:]
    assert len(rows) == (len(policies) or 5)
    assert all(row.split()[1].endswith("%") for row in rows)
