"""Losses that were measured, and the file that keeps them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from calibrate.deciding.trials import Trials
from tests.planted import Drawn, World, made


def test_losses_are_measured_once_and_only_where_they_are_missing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    drawn = Drawn(World("any").population(), 20, np.random.default_rng(0))
    first = Trials(drawn, tmp_path / "trials.json", {"profile": "p"})
    schedule = made("fastv:k=1,ratio=0.9")
    assert (first.losses(schedule, 8) == drawn.losses(schedule, list(range(8)))).all()
    first.losses(schedule, 20)
    first.losses(schedule, 8)
    assert [n for _, n in drawn.executed] == [8, 8, 12] and (first.executed, first.passes) == (1, 20)
    first.save()
    again = Trials(drawn, tmp_path / "trials.json", {"profile": "p"})
    assert (again.losses(schedule, 20) == first.losses(schedule, 20)).all() and len(drawn.executed) == 3
    other = Trials(drawn, tmp_path / "trials.json", {"profile": "another"})
    other.losses(schedule, 8)
    assert len(drawn.executed) == 4, "losses of another run are let go"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"run": 3}', json.dumps({"run": "x", "losses": {"a": "b"}})])
def test_a_damaged_file_is_measured_again(tmp_path, content: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trials.json"
    path.write_text(content)
    drawn = Drawn(World("any").population(), 8, np.random.default_rng(0))
    assert len(Trials(drawn, path).losses(made("fastv"), 8)) == 8
