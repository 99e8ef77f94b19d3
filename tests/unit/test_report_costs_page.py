"""Cost tables and sweeps as a page: the same cells, pictures, and what a user named is text."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from planner.cost.hardware import hardware
from planner.policies import parse
from planner.report.costs import render, report
from planner.report.costs_page import page, sweep_page
from planner.report.sweeps import sweep_csv, sweep_front
from planner.report.targets import read_target
from planner.workload import Workload


class _Cells(HTMLParser):
    """The texts of a page's cells, headings and captions, row by row; what is not closed in order is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.captions: list[str] = []
        self.labels: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "wbr"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data.replace("\u00a0", " ")
        elif self.open[-1:] == ["h2"]:
            self.headings.append(data)
        elif self.open[-1:] == ["figcaption"]:
            self.captions.append(data)
        elif "svg" in self.open and self.open[-1:] == ["text"]:
            self.labels.append(data)


def parsed(page: str) -> _Cells:
    cells = _Cells()
    cells.feed(page)
    cells.close()
    assert cells.open == []
    return cells


def costed(name: str, called: str, texts: tuple[str, ...], device: str | None = None) -> dict[str, Any]:
    target = replace(read_target(name), name=called)
    chosen = [(text, parse(text).schedule(target.spec)) for text in texts]
    row = None if device is None else hardware(device)
    return report(target, Workload(visual_tokens=576), chosen, hardware=row)


def test_the_page_holds_the_cells_of_the_table_and_nothing_of_a_name_is_markup() -> None:
    text = "random:k=2,ratio=0.5"
    reports = [costed("llava-1.5-7b", "llava-1.5-7b", (text,)), costed("llava-1.5-13b", "<b>&amp;</b>", (text,))]
    cells = parsed(page(reports))
    by_component = "By component"
    assert cells.headings == ["llava-1.5-7b", "Cost", by_component, "<b>&amp;</b>", "Cost", by_component]
    tables = [line for line in render(reports, "md").splitlines() if line.startswith("|") and "|--" not in line]
    assert cells.rows == [[cell.strip() for cell in line.strip("|").split("|")] for line in tables]
    assert len(cells.rows) == 2 * 2 * 3


def test_a_device_keeps_its_name_and_gets_pictures_of_time_and_memory() -> None:
    texts = ("fastv:k=2,ratio=0.5", "fastv:k=4,ratio=0.5", "prellm:keep=0.5+vtw:k=9")
    found = costed("llava-1.5-7b", "llava-1.5-7b", texts, "h100-sxm")
    shown = page([found, costed("llava-1.5-13b", "llava-1.5-13b", (), "l4")])
    assert "estimates for NVIDIA H100 SXM and the engine hf" in shown and "estimates for NVIDIA L4" in shown
    cells = parsed(shown)
    assert [caption.split(" on NVIDIA")[0].split(" of NVIDIA")[0] for caption in cells.captions[:5]] == [
        "Visual tokens that each decoder layer computes",
        "FLOPs of the prefill by component, whole batch",
        "Roofline estimate of the first token",
        "Roofline estimate of each further token",
        "Memory",
    ]
    assert {"fastv 1", "fastv 2", "prellm+vtw", "elementwise", "KV cache", "the device has"} <= set(cells.labels)
    assert ["dense", "49.24", "25.00", "overhead, overhead", "14.6 of 80", "up to batch 154"] in cells.rows


def test_what_the_device_does_is_all_of_its_time() -> None:
    row = costed("llava-1.5-7b", "m", ("vtw:k=9",), "xeon-8480")["rows"][1]
    time = row["latency_estimate"]
    layers, tower = 32, 24
    overhead = (layers * 515 + 8520 + tower * 1010) / 1000
    # A CPU works and prepares in turn.
    assert sum(time["prefill_ms_by_class"].values()) + overhead == pytest.approx(time["time_to_first_token_ms"])


def test_a_sweeps_front_is_what_no_setting_beats() -> None:
    target, workload = read_target("llava-1.5-7b"), Workload(visual_tokens=576)
    spelled = "fastv:k=1..8,ratio=0.1..0.9..0.2"
    front = sweep_front(target, workload, spelled, "exact", hardware("l4"))
    lines = list(csv.DictReader(io.StringIO(sweep_csv(target, workload, spelled, "exact"))))
    every = [(float(line["prefill_ratio"]), float(line["visual_attention_ratio"])) for line in lines]
    unbeaten = [
        one for one in every
        if not any(other != one and other[0] <= one[0] and other[1] >= one[1] for other in every)
    ]  # fmt: skip
    assert front.line == sorted(unbeaten) and front.points == every and front.unbeaten == len(unbeaten) < 40
    cells = parsed(sweep_page([front]))
    rows = -(-len(unbeaten) // -(-len(unbeaten) // 24))
    assert cells.headings == ["llava-1.5-7b: fastv", f"The front, {rows} of {len(unbeaten)} settings"]
    assert cells.rows[0][:4] == ["k", "ratio", "prefill flops", "prefill ratio"]
    assert len(cells.rows) == 1 + rows < 1 + len(unbeaten)
    assert "estimates for NVIDIA L4 and the engine hf" in sweep_page([front])
