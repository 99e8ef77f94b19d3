"""Text from elsewhere, in a terminal, a spreadsheet and a chart."""

from __future__ import annotations

import csv
import io

import pytest

from planner.cli import _refuse
from planner.cost import COMPONENTS
from planner.report.charts import bars, exact
from planner.report.costs import render
from planner.text import csv_text, printable


def test_control_characters_are_spelled_out_and_ordinary_text_is_not():
    assert printable("a\x1b[31mred\x07\r\x9b2J\x7f") == r"a\x1b[31mred\x07\r\x9b2J\x7f"
    assert printable("evil\u202etxt.exe") == r"evil\u202etxt.exe"
    for text in ("line\nline\ttab", "é 日本 😀 zero\u200dwidth", ""):
        assert printable(text) == text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1"])
def test_a_cell_that_a_spreadsheet_would_compute_is_text(text):
    assert csv_text(text) == f"'{text}"
    assert csv_text(f"a{text}") == f"a{text}"


def test_an_error_does_not_write_to_the_terminal_what_it_was_given(capsys):
    with pytest.raises(SystemExit):
        _refuse("no model 'a\x1b]0;title\x07'")
    assert "\x1b" not in capsys.readouterr().err


def test_csv_reports_of_a_name_that_is_a_formula():
    row = {"policy": "=cmd()", "prefill_flops": -1.0, "prefill_by_component": {}, "visual_tokens_per_layer": [1]}
    row["prefill_by_component"] = dict.fromkeys(COMPONENTS, 1)
    text = render([{"model": "@model", "convention": "exact", "workload": {"batch": 1}, "rows": [row]}], "csv")
    (line,) = csv.DictReader(io.StringIO(text))
    assert line["model"] == "'@model" and line["policy"] == "'=cmd()" and line["prefill_flops"] == "-1.0"


def test_a_dollar_sign_in_a_label_is_a_dollar_sign():
    svg = bars(["$1$", "2"], {"$x_{$": exact([1.0, 2.0]), "a $b$ c": exact([2.0, 1.0])}, xlabel="costs $", ylabel="$$")
    assert "a $b$ c" in svg and "$x_{$" in svg and "costs $" in svg
