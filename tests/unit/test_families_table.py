"""`reports/families.md` says what the tests hold today."""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from planner.spec.config import role_of
from tests.families import table

PAGE = Path(__file__).parents[2] / "reports" / "families.md"


def test_the_page_is_current() -> None:
    written = PAGE.read_text()
    if transformers.__version__ in written:
        assert written == table.render(), "run: python -m tests.families --out reports/families.md"


def test_what_it_claims_is_tested() -> None:
    lines = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells] for cells in lines}
    assert rows["qwen3_5"][1:3] == ["exact", "yes"] and rows["qwen3_5"][5] == "equal"
    assert rows["mllama"][5] == "refused"
    assert rows["instructblip"][1:3] == ["exact", "yes"]
    assert rows["udop"][1] == "refused"
    exact = [name for name, row in rows.items() if row[1] == "exact"]
    assert len(exact) >= 70 and all(rows[name][2] != "no" for name in exact)


def test_every_refusal_has_a_reason() -> None:
    types = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    refused = {name for name in types if role_of(name) not in ("vlm", "decoder")}
    given = [name for names in table.REASONS.values() for name in names]
    assert len(given) == len(set(given)) and refused <= set(given)
