"""docs/: the glossary is sorted, files that are named exist, and papers are named by their short names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
#: Where a reader meets the names of papers.
PROSE = [
    *(path for folder in ("planner", "calibrate", "tests", "profiles") for path in (ROOT / folder).rglob("*.py")),
    *(path for folder in ("docs", "reports", "profiles") for path in (ROOT / folder).rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "profiles/published/figures.json")),
]


def test_the_glossary_is_sorted_and_complete_sentences() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)[1:]
    terms = [term.strip("`").replace("_", " ").casefold() for term, _ in rows]
    assert terms == sorted(terms)
    assert len(set(terms)) == len(terms)
    assert all(meaning.endswith(".") for _, meaning in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`((?:calibrate|docs|planner|profiles|reports|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (page.parent / name).exists(), name


def test_the_readme_links_the_manual() -> None:
    assert "](docs/index.md)" in (ROOT / "README.md").read_text()


def test_papers_are_named_not_numbered() -> None:
    key = re.compile(r"\bS" + r"[0-4]\b")
    assert not [str(path.relative_to(ROOT)) for path in PROSE if key.search(path.read_text())]
