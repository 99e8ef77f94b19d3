"""The short run: some mutants of each kind of file."""

from __future__ import annotations

import pytest

from tests.fuzz.run import run
from tests.fuzz.targets import targets

TARGETS = {target.name: target for target in targets()}
MUTANTS = 60


@pytest.mark.parametrize("name", TARGETS)
def test_mutants_are_read_or_refused_and_no_damaged_one_is_believed(name: str) -> None:
    found = run(TARGETS[name], MUTANTS)
    assert found.outcomes.total() >= MUTANTS // 2
    assert found.outcomes["refused"], "the mutants are too tame"
    assert not found.faults, found.faults[0]


@pytest.mark.parametrize("name", TARGETS)
def test_the_whole_file_is_read(name: str) -> None:
    """Or every refusal above would mean nothing."""
    assert TARGETS[name].outcome(TARGETS[name].content) == "read"
