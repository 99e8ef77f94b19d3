"""Attention to a shared prefix and to oneself, against a softmax over one full matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.runtime.tensors import prefix
from planner.runtime.tensors.layout import read_layout
from planner.runtime.tensors.masks import behind
from planner.runtime.tensors.prefix import PrefixAttention
from planner.runtime.tensors.rows import Rows

BATCH, HEADS, KV_HEADS, ROWS, TEXT, SIZE = 2, 6, 2, 7, 4, 5


def drawn(text: int = TEXT, mask: torch.Tensor | None = None, softcap: float | None = None) -> PrefixAttention:
    generator = torch.Generator().manual_seed(text)

    def noise(heads: int, rows: int) -> torch.Tensor:
        return torch.randn(BATCH, heads, rows, SIZE, generator=generator, dtype=torch.float64)

    own, shared = (KV_HEADS, ROWS), (KV_HEADS, text)
    return PrefixAttention(
        noise(HEADS, ROWS), noise(*own), noise(*own), noise(*shared), noise(*shared), mask, 0.7, softcap
    )


def literal(given: PrefixAttention, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output ``[B, n, H, dh]`` and weights ``[B, H, n, p + n]`` of a softmax over all text and all visual keys, of
    which every row sees its own."""
    key = torch.cat([given.key, given.own_key], dim=2).repeat_interleave(HEADS // KV_HEADS, dim=1)
    value = torch.cat([given.value, given.own_value], dim=2).repeat_interleave(HEADS // KV_HEADS, dim=1)
    scores = given.query @ key.transpose(2, 3) * given.scaling
    if given.softcap:
        scores = given.softcap * torch.tanh(scores / given.softcap)
    allowed = torch.cat([seen, torch.eye(ROWS, dtype=torch.bool).expand(BATCH, ROWS, ROWS)], dim=2)
    weights = torch.softmax(scores.masked_fill(~allowed[:, None], float("-inf")), dim=-1)
    return (weights @ value).transpose(1, 2), weights


def some_seen() -> torch.Tensor:
    seen = torch.rand(BATCH, ROWS, TEXT, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[0, 2] = False  # a row that sees nothing but itself
    return seen


@pytest.mark.parametrize("most", [1 << 24, 1, BATCH * HEADS * (TEXT + 1) * 3])
@pytest.mark.parametrize("kind", ["none", "bool", "additive", "lowest of half precision"])
@pytest.mark.parametrize("softcap", [None, 0.8])
def test_output_and_weights(kind: str, softcap: float | None, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and in chunks of one and of three rows."""
    monkeypatch.setattr(prefix, "_MOST_WEIGHTS", most)
    seen = torch.ones(BATCH, ROWS, TEXT, dtype=torch.bool) if kind == "none" else some_seen()
    lowest = torch.finfo(torch.float16 if "half" in kind else torch.float64).min
    dtype = torch.float16 if "half" in kind else torch.float64
    masks: dict[str, Any] = {"none": None, "bool": seen[:, None]}
    additive = torch.zeros(BATCH, 1, ROWS, TEXT, dtype=dtype).masked_fill(~seen[:, None], lowest)
    given = drawn(mask=masks.get(kind, additive), softcap=softcap)
    output, weights = literal(given, seen)
    assert (given.output() - output).abs().max() < 1e-12
    assert (given.received() - weights[..., :TEXT].sum(2)).abs().max() < 1e-12


def test_without_text_a_row_is_its_own_value() -> None:
    given = drawn(text=0)
    assert torch.equal(given.output(), given.own_value.repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(1, 2))


def test_text_ahead_by_hand() -> None:
    """7 is an image token, 0 padding. In sample 0 text stands between two images, in sample 1 behind one."""
    ids = torch.tensor([[0, 1, 7, 7, 2, 3, 7, 4], [1, 2, 3, 7, 7, 7, 4, 5]])
    layout = read_layout(ids, (7,), (ids != 0).long())
    assert layout.ahead.nonzero().tolist() == [[0, 1], [0, 4], [0, 5], [1, 0], [1, 1], [1, 2]]
    assert layout.ahead_counts == (3, 3) and not layout.one_block
    assert read_layout(ids[1:], (7,), None).one_block
    visual = Rows.of(layout.visual, layout.visual_counts)
    ahead = Rows.most(layout.ahead, 4)
    assert ahead.index.tolist() == [[-1, 1, 4, 5], [-1, 0, 1, 2]]
    seen = behind(None, visual, ahead)[:, 0]
    assert seen[0].tolist() == [[False, True, False, False]] * 2 + [[False, True, True, True]]
    assert seen[1].tolist() == [[False, True, True, True]] * 3
    # What the model hides stays hidden, and what it shows of later text does not count.
    window = torch.ones(8, 8, dtype=torch.bool).triu(-1)[None, None]
    seen = behind(window, visual, ahead)[:, 0]
    assert seen[0].tolist() == [[False, True, False, False], [False] * 4, [False, False, False, True]]
    additive = torch.zeros(1, 1, 8, 8).masked_fill(~window, torch.finfo(torch.float32).min)
    assert torch.equal(behind(additive, visual, ahead)[:, 0] == 0, seen)
