"""An entry on one picture by itself chooses what it chooses in a prompt with that picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner.runtime import attach
from planner.runtime.model.adapters import find_parts
from planner.runtime.selection.entry_scores import lots
from planner.runtime.selection.picture import PictureEntry
from planner.schedule import Count, Fraction, Schedule, Select, Stage
from tests import tiny

SELECTS = {
    "diverse": Select(rank_by="max_min_distance", keep=Fraction(fraction=0.4)),
    "dart": Select(rank_by="pivot_distance", keep=Count(count=5)),
    "norm": Select(rank_by="encoder_norm", keep=Count(count=4)),
    "per tile": Select(rank_by="max_min_distance", keep=Count(count=3), per="tile"),
    "random": Select(rank_by="random", keep=Count(count=4), seed=2),
    "pool": Select(rank_by="grid", keep=Count(count=6), merge="cell"),
}
#: What the processor says beside the pixels.
BESIDE = ("image_sizes", "image_grid_thw")


def seen(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """``[visual tokens, d]`` that enter the text tower."""
    parts, found = find_parts(model), []
    hook = parts.tower.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    return found[0][0, inputs["input_ids"][0] == parts.visual_ids[0]]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SELECTS)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_a_picture_by_itself_keeps_what_it_keeps_in_a_prompt(family: str, name: str) -> None:
    model, inputs, select = tiny.model(family), tiny.inputs(family, batch=1), SELECTS[name]
    features = seen(model, inputs)
    schedule = Schedule(stages=(Stage(first=0, last=4),), entry=select)
    with attach(model, schedule) as handle, torch.no_grad():
        model(**inputs)
        wanted = handle.kept[0][0]
    beside = {key: inputs[key] for key in BESIDE if key in inputs}
    entry = PictureEntry(model.config, select)
    rows, tokens = entry.chosen(features, features.shape[1], beside)
    assert rows.tolist() == wanted
    assert sum(kept for _, kept in entry.pieces(len(features), beside)) == len(wanted)
    if select.merge == "none":
        assert torch.equal(tokens, features[rows])


def test_a_picture_draws_by_lot_whatever_is_asked() -> None:
    """Alone or in a batch, under any question; another picture or another seed draws otherwise."""
    model, inputs = tiny.model("llava"), tiny.inputs("llava", batch=2)
    schedule = Schedule(stages=(Stage(first=0, last=4),), entry=SELECTS["random"])

    def drawn(inputs: dict[str, Tensor], seed: int = 0) -> list[list[int]]:
        with attach(model, schedule, seed=seed) as handle, torch.no_grad():
            model(**inputs)
            return handle.kept[0]

    both = drawn(inputs)
    assert both[0] != both[1], "two pictures"
    assert drawn(inputs, seed=1) != both
    alone = {name: one[:1] for name, one in inputs.items()}
    asked = {**alone, "input_ids": alone["input_ids"].clone()}
    asked["input_ids"][0, -1] += 1
    assert drawn(alone) == drawn(asked) == both[:1]


def test_lots_are_fair() -> None:
    """Every place stays about as often as any other, and every pair of places as often as chance has it."""
    features = torch.randn(4000, 6, 8, generator=torch.Generator().manual_seed(0))
    features[:, 1] = features[:, 0]  # tokens that look alike draw each for itself
    stays = torch.zeros(4000, 6, dtype=torch.float64)
    for seed in range(400):
        part = slice(10 * seed, 10 * seed + 10)
        stays[part].scatter_(1, lots(features[part], seed).topk(2, dim=1).indices, 1)
    pairs = stays.T @ stays / len(stays)
    assert torch.allclose(pairs.diagonal(), torch.full((6,), 1 / 3, dtype=torch.float64), atol=0.05)
    apart = pairs[~torch.eye(6, dtype=torch.bool)]
    assert torch.allclose(apart, torch.full_like(apart, 1 / 15), atol=0.03)


def test_tiles_have_a_budget_each() -> None:
    model, inputs = tiny.model("llava_next"), tiny.inputs("llava_next", batch=1)
    entry = PictureEntry(model.config, SELECTS["per tile"])
    # A base view of 3 x 3, and 1 x 2 tiles side by side with a newline behind each of 3 rows.
    assert inputs["image_sizes"].tolist() == [[24, 48]]
    assert entry.pieces(9 + 3 * 7, {"image_sizes": inputs["image_sizes"]}) == [(9, 3), (21, 3)]


def test_what_is_dropped_joins_what_is_kept_and_other_channels_go_along() -> None:
    config = tiny.config("llava")
    select = Select(rank_by="encoder_norm", keep=Count(count=2), merge="nearest")
    features = torch.tensor([[3.0, 0.0], [2.0, 0.2], [0.0, 4.0], [0.1, 1.0], [1.0, 0.0]], dtype=torch.float64)
    beside = torch.tensor([[1.0], [2.0], [3.0], [4.0], [6.0]], dtype=torch.float64)
    rows, tokens = PictureEntry(config, select).chosen(torch.cat([features, beside], dim=1), 2, {})
    assert rows.tolist() == [0, 2]
    # Tokens 1 and 4 are most like token 0, token 3 like token 2.
    wanted = torch.tensor([[2.0, 0.2 / 3, 3.0], [0.05, 2.5, 3.5]], dtype=torch.float64)
    assert torch.allclose(tokens, wanted)


def test_attention_that_was_watched_elsewhere_ranks() -> None:
    select = Select(rank_by="encoder_attention", keep=Count(count=2))
    entry = PictureEntry(tiny.config("llava"), select)
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for received, wanted in (([0.1, 0.4, 0.2, 0.3], [1, 3]), ([0.9, 0.4, 0.2, 0.3], [0, 1])):
        assert entry.chosen(features, 3, {}, torch.tensor(received))[0].tolist() == wanted
