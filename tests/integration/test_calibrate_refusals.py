"""What `plan calibrate` refuses, with cause and remedy, before it loads a model or loses what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibrate.inputs.bundled import reference_path
from planner.cli import cli
from planner.errors import PlannerError

DATA = reference_path("easy_vqa")
MODEL = reference_path("windowed")


@pytest.fixture
def unloaded(monkeypatch):
    """Loading a model fails the test."""
    monkeypatch.setattr("calibrate.pipeline.run.load", lambda *_: pytest.fail("a model was loaded"))


def calibrate(out: Path, *arguments: object) -> str:
    """The refusal of a calibration."""
    done = CliRunner().invoke(cli, ["calibrate", "-o", str(out), *map(str, arguments)])
    assert isinstance(done.exception, PlannerError), done.output
    return str(done.exception)


def written(folder: Path, lines: list[dict]) -> Path:
    """Samples of the bundled set, changed."""
    path = folder / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def bundled() -> list[dict]:
    lines = [json.loads(line) for line in (DATA / "calibration.jsonl").read_text().splitlines()]
    return [{**line, "image": str(DATA / line["image"])} for line in lines]


@pytest.mark.parametrize("count", [10, 47])
def test_too_few_samples(tmp_path, unloaded, count):
    text = calibrate(tmp_path / "out", "--num-samples", count)
    assert f"of {count} samples" in text and "cannot prove an agreement of 0.98" in text and "--best-effort" in text


def test_answers_missing_under_goal_accuracy(tmp_path, unloaded):
    lines = bundled()
    del lines[3]["answer"]
    text = calibrate(tmp_path / "out", MODEL, "--data", written(tmp_path, lines), "--goal", "accuracy")
    assert "1 of 256 samples have no accepted answer" in text and "samples.jsonl:4" in text


def test_all_questions_about_one_picture(tmp_path, unloaded):
    first = bundled()[0]
    lines = [{**first, "prompt": f"is there a rectangle? ({i})"} for i in range(120)]
    text = calibrate(tmp_path / "out", MODEL, "--data", written(tmp_path, lines))
    assert "all 120 samples are about one picture" in text


@pytest.mark.parametrize(
    "options, says",
    [
        (["--agreement", 98], "an agreement of 98"),
        (["--confidence", 80], "a confidence of 80"),
        (["--loss", "score"], "does not belong to the goal 'agreement'"),
        (["--goal", "accuracy", "--loss", "tokens"], "does not belong to the goal 'accuracy'"),
        (["--metric", "nowhere:f"], "cannot be imported"),
        (["--kind-limit", 0.001], "needs 1609 certify samples of each kind"),
    ],
)
def test_numbers_and_names_that_make_no_sense(tmp_path, unloaded, options, says):
    assert says in calibrate(tmp_path / "out", *options)


def test_a_wrong_number_is_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys\nfrom planner.cli import cli\nfrom planner.errors import InputError\n"
        f"try:\n    cli(['calibrate', '--agreement', '98', '-o', {str(tmp_path / 'out')!r}], standalone_mode=False)\n"
        "except InputError as error:\n    print(error)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "an agreement of 98" in done.stderr + done.stdout and done.stdout.splitlines()[-1] == "False"


def test_the_profile_is_written_whatever_becomes_of_the_decision(tmp_path, monkeypatch):
    (tmp_path / "scoring.py").write_text("def score(answer, accepted):\n    return {}[answer]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = calibrate(
        tmp_path / "out", "--goal", "accuracy", "--metric", "scoring:score", "--agreement", 0.5,
        "--probes", "influence", "--num-samples", 24,
    )  # fmt: skip
    assert "the metric scoring:score fails on " in text and "KeyError" in text
    assert (tmp_path / "out" / "profile.json").exists() and not (tmp_path / "out" / "plan.json").exists()
