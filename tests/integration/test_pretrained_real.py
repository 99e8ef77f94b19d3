"""The real pretrained reference model: run with ``pytest -m pretrained``; PRETRAINED_WHEEL names a wheel at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from planner.profiles.reference.train.pretrained.base import load_base
from planner.profiles.reference.train.pretrained.build import save_folder
from planner.profiles.reference.train.pretrained.card import CHECKSUM, generated
from planner.profiles.reference.train.pretrained.run import DELTA
from safetensors.torch import load_file

pytestmark = pytest.mark.pretrained
FOLDER = Path(__file__).resolve().parents[2] / "profiles" / "reference" / "pretrained"
SAMPLES = 24


def test_the_rebuilt_model_has_the_checksum_and_answers(tmp_path: Path) -> None:
    wheel = os.environ.get("PRETRAINED_WHEEL")
    base = load_base(Path(wheel) if wheel else None)
    found = save_folder(base, load_file(FOLDER / DELTA), tmp_path)
    assert (FOLDER / CHECKSUM).read_text().split()[0] == found
    assert sum(generated(tmp_path, FOLDER, SAMPLES)) >= 0.75 * SAMPLES
