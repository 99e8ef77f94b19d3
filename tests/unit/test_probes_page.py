"""The page about probes: each probe is told, at its cost, with sentences that reports print."""

from __future__ import annotations

import re
from pathlib import Path

from calibrate.probes.base import ALWAYS, BUILT_IN, DEFAULT, ExecutedProbe, probe_class
from calibrate.probes.settings import parse_settings
from planner.profile import PromptShape
from planner.report.probes import sections
from tests.unit.report_documents import committed, encoder_sinks, profile, written

PAGE = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXECUTED = [name for name in BUILT_IN if issubclass(probe_class(name), ExecutedProbe)]
#: What differs from model to model: a figure or interval, several layers.
NUMBER = r"\d(?:[\d.e-]*\d)?"
FIGURE = rf"no layer|layers? {NUMBER}(?:(?:, | and ){NUMBER})*|{NUMBER}|none"


def test_every_probe_is_told_where_it_runs() -> None:
    when = dict.fromkeys(BUILT_IN, "on request") | dict.fromkeys(DEFAULT, "by default") | {ALWAYS: "always"}
    assert dict(re.findall(r"^\| .+\? \| `(\w+)` \| ([\w ]+) \|", PAGE, re.MULTILINE)) == when
    assert sorted(SECTIONS) == sorted(BUILT_IN)


def test_costs() -> None:
    prompt = PromptShape(system_tokens=10, visual_tokens=576, text_tokens=64)
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \| ([\d,.]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == EXECUTED
    for name, *stated in rows:
        probe = probe_class(name)()
        assert isinstance(probe, ExecutedProbe)
        work = probe.work(32, prompt)
        counted = [f"{probe.samples}", f"{probe.forwards(32):,}", f"{work:,.1f}", f"{work * probe.samples:,.0f}"]
        assert stated == counted, name


def test_settings_exist() -> None:
    for text in re.findall(r"--set ([\w.]+=[\w/.]+)", PAGE):
        parse_settings([text])


def test_sentences_are_those_of_reports() -> None:
    """Whatever the figures are."""
    made = [written(), {"encoder_sinks": encoder_sinks(None)}]
    sources = [committed(), *map(profile, made)]
    printed = [(one.name, said) for source in sources for one in sections(source) for said in one.findings]
    quoted = 0
    for name, text in SECTIONS.items():
        for quote in re.findall(r"(?:^> .+\n)+", text, re.MULTILINE):
            sentence = re.sub(r"\n> |^> ", " ", quote.strip()).strip()
            pattern = re.compile(_any_figures(sentence))
            assert any(of == name and pattern.search(said) for of, said in printed), sentence
            quoted += 1
    assert quoted >= len(SECTIONS) - 1, "all but the prompt's lengths"


def _any_figures(sentence: str) -> str:
    parts = re.split(rf"(…|{FIGURE})", sentence)
    return "".join(".*?" if part == "…" or re.fullmatch(FIGURE, part) else re.escape(part) for part in parts)
