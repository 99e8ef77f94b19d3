"""Samples that are in two sets, or in one twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from calibrate.inputs.overlap import questions_of, refuse_known, tell_overlap
from calibrate.inputs.samples import SampleSet, load_samples
from planner.errors import SampleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shade in range(4):
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / f"{shade}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    return tmp_path


def samples(folder: Path, *lines: tuple[str, str, str]) -> SampleSet:
    path = folder / f"{abs(hash(lines))}.jsonl"
    path.write_text("\n".join(json.dumps({"image": i, "prompt": p, "answer": a}) for i, p, a in lines))
    return load_samples(path)


def test_an_evaluation_sample_that_was_calibrated_on_is_refused_under_any_name_and_answer(folder):
    calibration = samples(folder, ("0.png", "what?", "a"), ("1.png", "what?", "b"))
    again = samples(folder, ("2.png", "what?", "a"), ("copy.png", "what? ", "another answer"))
    with pytest.raises(SampleError, match=r"1 of 2 evaluation samples are calibration samples, .*:2 for one"):
        tell_overlap(calibration, again, print)
    with pytest.raises(SampleError, match="1 of 2"):
        refuse_known(questions_of(calibration), again)
    refuse_known(questions_of(calibration), samples(folder, ("2.png", "what?", "a")))
    refuse_known(None, again)


def test_duplicates_and_shared_images_are_told(folder):
    calibration = samples(folder, ("0.png", "what?", "a"), ("copy.png", "what?", "b"), ("1.png", "what?", "b"))
    others = samples(folder, ("0.png", "where?", "a"), ("3.png", "what?", "b"))
    lines: list[str] = []
    tell_overlap(calibration, others, lines.append)
    assert len(lines) == 2
    assert lines[0].startswith("note: 1 of 3 calibration samples repeat another's images and prompt")
    assert lines[1].startswith("note: 1 images are in both")
    lines.clear()
    tell_overlap(samples(folder, ("1.png", "what?", "b")), None, lines.append)
    assert lines == []


def test_the_order_of_images_is_part_of_a_question_and_the_order_of_samples_is_not(folder):
    one, other = folder / "one.jsonl", folder / "other.jsonl"
    one.write_text('{"image": ["0.png", "1.png"], "prompt": "x"}\n{"image": "2.png", "prompt": "x"}')
    other.write_text('{"image": "2.png", "prompt": "x"}\n{"image": ["1.png", "0.png"], "prompt": "x"}')
    first, second = load_samples(one), load_samples(other)
    assert first[1].question_digest == second[0].question_digest
    assert first[0].question_digest != second[1].question_digest
    assert questions_of(first) == questions_of(SampleSet(first.samples[::-1], "reversed"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"image": "0.png", "prompt": "\\ud800"}', "half a character"),
        ('{"image": "0.png", "prompt": "x", "n": 1e999}', "not a number"),
        ("[" * 3000, "nested too deeply|Expecting"),
        ('{"image": "a\\u0000b", "prompt": "x"}', "does not exist"),
        ('{"image": "0.png", "prompt": "x", "prompt": "y"}', "twice"),
    ],
)
def test_lines_that_once_ended_in_a_traceback(folder, line, says):
    path = folder / "bad.jsonl"
    path.write_text('{"image": "0.png", "prompt": "x"}\n' + line)
    with pytest.raises(SampleError, match=rf"bad\.jsonl:2.*({says})"):
        load_samples(path)


def test_a_separator_inside_a_text_does_not_end_the_line(folder):
    path = folder / "x.jsonl"
    path.write_text(json.dumps({"image": "0.png", "prompt": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert load_samples(path)[0].prompt == "a\u2028b\x85c"
