"""Rows of a batch get the tokens that each would get alone, whatever the others are, take and leave."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from planner.runtime import attach
from planner.runtime.batched import answer, join, shape_of, sharing
from tests import tiny
from tests.schedules import LAYERS, SCHEDULES

#: One axis of positions, three, sliding windows, features that are added in layers.
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "qwen3_vl")
NAMES = ("visipruner", "fastv", "prellm", "var-fastv", "probe")
PLACEHOLDERS = list(range(118, 128))


@dataclass
class Row:
    inputs: dict[str, torch.Tensor]
    limit: int = 6
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    leaves: int = 1000
    tokens: list[int] = field(default_factory=list)
    visual: tuple[int, ...] | None = None

    def begin(self, visual: tuple[int, ...]) -> None:
        self.visual = visual

    def take(self, token: int) -> bool:
        self.tokens.append(token)
        return len(self.tokens) >= min(self.limit, self.leaves)


def rows(family: str) -> list[Row]:
    """Prompts of many lengths; some answers are short, one row leaves."""
    found = [Row(tiny.inputs(family, seed=n, text=3 + 2 * n), limit=3 + n) for n in range(4)]
    found[2].leaves = 2
    return found


def quiet(model: Any) -> Any:
    """An untrained model generates placeholders as well, which ask for an image."""
    model.generation_config.suppress_tokens = PLACEHOLDERS
    return model


@pytest.mark.parametrize(
    ("family", "name"), [("llava", name) for name in NAMES] + [(family, "fastv") for family in FAMILIES[1:]]
)
def test_rows_get_the_tokens_that_they_get_alone(family: str, name: str) -> None:
    model, asked = quiet(tiny.model(family, layers=LAYERS)), rows(family)
    assert len({shape_of(row.inputs) for row in asked}) == 1
    with attach(model, SCHEDULES[name]) as handle:
        expected, reports = [], []
        for row in asked:
            tokens = model.generate(**row.inputs, max_new_tokens=row.limit, do_sample=False, eos_token_id=-1)
            expected.append(tokens[0, row.inputs["input_ids"].shape[1] :].tolist())
            reports.append(tuple(layer[0] for layer in handle.report.visual))
    shared = sharing(model)
    with attach(shared, SCHEDULES[name]) as handle:
        answer(shared, asked, 0, handle)
    assert [row.tokens for row in asked] == [e[: row.leaves] for e, row in zip(expected, asked, strict=True)]
    assert [row.visual for row in asked] == reports
    assert min(map(len, expected)) >= 3


def test_models_that_share_weights_run_other_plans_and_hold_no_second_copy() -> None:
    model = quiet(tiny.model("llava", layers=LAYERS))
    one, two = sharing(model), sharing(model)
    for own, first, second in zip(model.parameters(), one.parameters(), two.parameters(), strict=True):
        assert own.data_ptr() == first.data_ptr() == second.data_ptr()
    inputs = tiny.inputs("llava")
    dense = model(**inputs).logits
    with attach(one, SCHEDULES["fastv"]) as fastv, attach(two, SCHEDULES["prellm"]) as prellm:
        logits = [of(**inputs).logits[:, -1] for of in (one, two)]
        assert torch.equal(model(**inputs).logits, dense)
        assert not torch.allclose(logits[0], logits[1])
        assert fastv.report.visual != prellm.report.visual
    assert torch.equal(one(**inputs).logits, dense)


def test_what_differs_in_more_than_length_is_not_joined() -> None:
    one = {"input_ids": torch.ones(1, 4, dtype=torch.long), "pixel_values": torch.zeros(1, 3, 8, 8)}
    longer = {"input_ids": torch.ones(1, 9, dtype=torch.long), "pixel_values": torch.zeros(2, 3, 8, 8)}
    wider = {**one, "pixel_values": torch.zeros(1, 3, 8, 9)}
    text = {"input_ids": one["input_ids"]}
    half = {**one, "pixel_values": one["pixel_values"].half()}
    assert shape_of(one) == shape_of(longer)
    assert len({shape_of(inputs) for inputs in (one, wider, text, half)}) == 4


def test_joining_pads_on_the_left() -> None:
    one = {
        "input_ids": torch.tensor([[5, 6]]),
        "attention_mask": torch.tensor([[1, 1]]),
        "grid": torch.tensor([[1, 2, 2]]),
    }
    two = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.tensor([[1]]), "grid": torch.tensor([[1, 4, 4]])}
    joined = join([one, two], pad_id=9)
    assert joined["input_ids"].tolist() == [[5, 6], [9, 7]]
    assert joined["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert joined["grid"].tolist() == [[1, 2, 2], [1, 4, 4]]


@torch.no_grad()
def first_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits[0, -1]


def test_draws_follow_the_model_and_their_seed() -> None:
    """The frequencies of first tokens are the model's own probabilities, in a batch with rows that are not drawn."""
    model = sharing(tiny.model("llava", layers=LAYERS))
    inputs = tiny.inputs("llava", images=0)
    logits = first_logits(model, inputs).double() / 0.4
    drawn = [Row(inputs, limit=1, temperature=0.4, seed=seed) for seed in range(400)]
    greedy = Row(inputs, limit=1)
    answer(model, [greedy, *drawn], 0)
    assert greedy.tokens == [int(logits.argmax())]
    seen = Counter(row.tokens[0] for row in drawn)
    likely = logits.softmax(0)
    for token in likely.topk(5).indices.tolist():
        spread = (float(likely[token]) * (1 - float(likely[token])) / len(drawn)) ** 0.5
        assert abs(seen[token] / len(drawn) - float(likely[token])) < 4 * spread
    again = [Row(inputs, limit=1, temperature=0.4, seed=row.seed) for row in drawn[:7]]
    answer(model, again, 0)
    assert [row.tokens for row in again] == [row.tokens for row in drawn[:7]]


def test_top_p_leaves_the_tail_out() -> None:
    model = sharing(tiny.model("llava", layers=LAYERS))
    inputs = tiny.inputs("llava", images=0)
    ordered = (first_logits(model, inputs) / 0.4).softmax(0).sort(descending=True)
    most = float(ordered.values[:3].sum()) - 1e-4  # the third is needed to reach it
    drawn = [Row(inputs, limit=1, temperature=0.4, top_p=most, seed=seed) for seed in range(300)]
    answer(model, drawn, 0)
    assert {row.tokens[0] for row in drawn} == set(ordered.indices[:3].tolist())
