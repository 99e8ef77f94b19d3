"""Cost tables as a page: the same cells, and what a user named is text."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from planner.policies import parse
from planner.report.costs import render, report
from planner.report.targets import read_target
from planner.workload import Workload


class _Cells(HTMLParser):
    """The texts of a page's cells and headings, row by row; what is not closed in order is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data
        elif self.open[-1:] == ["h1"]:
            self.headings.append(data)


def test_the_page_holds_the_cells_of_the_table_and_nothing_of_a_name_is_markup() -> None:
    text = "random:k=2,ratio=0.5"
    targets = [read_target("llava-1.5-7b"), replace(read_target("llava-1.5-13b"), name="<b>&amp;</b>")]
    schedules = [(text, parse(text).schedule(target.spec)) for target in targets]
    reports = [
        report(target, Workload(visual_tokens=576), [one]) for target, one in zip(targets, schedules, strict=True)
    ]
    page = _Cells()
    page.feed(render(reports, "html"))
    page.close()
    assert page.open == [] and page.headings == ["llava-1.5-7b", "<b>&amp;</b>"]
    tables = [line for line in render(reports, "md").splitlines() if line.startswith("|") and "|--" not in line]
    assert page.rows == [[cell.strip() for cell in line.strip("|").split("|")] for line in tables]
    assert len(page.rows) == 2 * 2 * 3
