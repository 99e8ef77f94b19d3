"""The page about proofs states what the code computes."""

from __future__ import annotations

import re
from pathlib import Path

from calibrate.deciding.power import least, needed
from calibrate.deciding.split import SEARCH_PICTURES, SEARCH_SHARE
from calibrate.running.losses import LONG_ANSWER_TOKENS, NLL_CAP
from calibrate.running.metrics import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "deciding.md").read_text(encoding="utf-8")


def test_sample_counts():
    rows = re.findall(r"^\| (0\.\d+), confidence (0\.\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.M)
    assert len(rows) == 4
    for agreement, confidence, *stated in rows:
        limit, sure = 1 - float(agreement), float(confidence)
        computed = [least(limit, sure), needed(limit, sure, 0.01, 0.8), needed(limit, sure, 0.005, 0.8)]
        assert [int(count) for count in stated] == computed


def test_constants_and_names():
    assert f"answers of more than {LONG_ANSWER_TOKENS} tokens on average" in PAGE
    assert NLL_CAP == 1 and "1 and more count as 1" in PAGE
    assert f"{SEARCH_PICTURES} pictures are needed" in PAGE and "two fifths of all" in PAGE and SEARCH_SHARE == 0.4
    assert all(f"`{name}`" in PAGE for name in METRICS)
    assert "(32 at confidence 0.8)" in PAGE and least(0.05, 0.8) == 32
