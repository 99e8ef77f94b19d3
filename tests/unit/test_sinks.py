"""Which tokens are sinks: the paper's threshold at the paper's size, and what narrow models make of it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calibrate.probes.massive import check_reachable, hot_tokens, threshold_notes
from calibrate.probes.sink_masking import SinkMaskingProbe
from calibrate.probes.sinks import SinksProbe
from planner.errors import InputError
from planner.policies import VAR
from planner.policies.var import sink_threshold
from planner.spec import ModelSpec
from tests.unit.report_documents import committed

LLAMA = ModelSpec.from_config("llava-1.5-7b")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(hidden, token, dims, phi):
    """Give a token of unit values so much in each dimension that it is `phi` times the root mean square."""
    width = hidden.shape[-1]
    hidden[:, token] /= hidden[:, token].square().mean(-1, keepdim=True).sqrt()
    hidden[:, token, dims] = 0.0
    rest = hidden[:, token].square().sum(-1)
    # x^2 = phi^2 (rest + k x^2) / d, solved for x.
    value = (phi**2 * rest / (width - len(dims) * phi**2)).sqrt()
    hidden[:, token, dims] = -value[:, None].expand(-1, len(dims))


def captures(hidden_by_layer, visual, weights=None):
    """What a pass shows of layers with these inputs ``[B, n, d]``; attention is even unless given."""
    batch, tokens, _ = hidden_by_layer[0].shape
    valid = torch.ones(batch, tokens, dtype=torch.bool)
    weights = torch.full((batch, 2, tokens), 1 / tokens) if weights is None else weights
    begun = visual.cumsum(1) > 0
    layers = len(hidden_by_layer)
    for layer, hidden in enumerate(hidden_by_layer):
        yield SimpleNamespace(
            layer=layer, layers=layers, ids=tuple(range(batch)), finished=layer == layers - 1,
            begins=layer == 0, view=SimpleNamespace(hidden=hidden), visual=visual, valid=valid, weights=weights,
            segments=torch.stack([~begun, visual, begun & ~visual], dim=1),
            influence=SimpleNamespace(l2=weights.sum(1) * torch.arange(1, tokens + 1)),
        )  # fmt: skip


def test_the_papers_threshold_at_the_papers_size_and_a_share_of_the_ceiling_below():
    assert [sink_threshold(size) for size in (5120, 4096, 2048, 896)] == [20.0] * 4
    assert sink_threshold(576) == pytest.approx(0.83 * 24) and sink_threshold(128) == pytest.approx(0.83 * 128**0.5)
    # The policy's sinks are the probe's, on any model; a value given stays.
    rule = VAR(dims=(3,)).schedule(LLAMA).stages[1].redistribute
    assert rule.tau == 20.0 and VAR(dims=(3,), tau=7).schedule(LLAMA).stages[1].redistribute.tau == 7
    narrow = ModelSpec.from_config(dict(committed().model.config))
    assert VAR(dims=(3,)).schedule(narrow).stages[1].redistribute.tau == sink_threshold(narrow.hidden_size) < 20


@pytest.mark.parametrize(("phi", "hot"), [(20.5, True), (19.5, False)])
def test_at_4096_twenty_decides(phi, hot):
    hidden = normal(1, 40, 4096)
    planted(hidden, 7, [1415], phi)
    found, _ = hot_tokens(hidden, torch.ones(1, 40, dtype=torch.bool))
    assert found[0].nonzero().flatten().tolist() == ([7] if hot else [])


def test_a_narrow_token_with_one_large_value_is_hot_only_if_it_is_massive():
    """At hidden size 64 a token of nearly one value reaches the ceiling at any size."""
    valid = torch.ones(1, 50, dtype=torch.bool)
    hidden = normal(1, 50, 64)
    hidden[0, [3, 9]] = 0.01 * hidden[0, [3, 9]]
    hidden[0, 3, 5], hidden[0, 9, 5] = 3.0, 30.0  # of root mean squares 0.375 and 3.75, the median being about 0.67
    assert hot_tokens(hidden, valid)[0][0].nonzero().flatten().tolist() == [9]


def test_padding_neither_is_hot_nor_moves_the_median():
    hidden = normal(1, 30, 64)
    planted(hidden, 12, [5], 7.9)
    valid = torch.ones(1, 30, dtype=torch.bool)
    alone = hot_tokens(hidden, valid)
    padded = torch.cat([torch.full((1, 200, 64), 50.0, dtype=torch.float64), hidden], dim=1)
    padded[0, 4] = 0.0
    padded[0, 4, 5] = 1e4
    both = hot_tokens(padded, torch.cat([torch.zeros(1, 200, dtype=torch.bool), valid], dim=1))
    assert alone[0][0].nonzero().flatten().tolist() == [12]
    assert both[0][0].nonzero().flatten().tolist() == [212]
    torch.testing.assert_close(both[1][:, 200:], alone[1])


def test_llama_like_sinks_are_found_with_what_they_take_and_give():
    """Dimensions 1415 and 2533 (LLaMA-2-7B): the first token has both, visual tokens 4 and 11 the first."""
    visual = torch.zeros(2, 20, dtype=torch.bool)
    visual[:, 2:18] = True  # a grid of 4 x 4
    layers = []
    for layer in range(6):
        hidden = normal(2, 20, 4096, seed=layer)
        planted(hidden, 0, [1415, 2533], 40.0)
        planted(hidden, 4, [1415], 25.0)
        planted(hidden, 11, [1415], 21.0)
        planted(hidden, 6, [99], 30.0) if layer == 3 else None  # massive in one layer only
        layers.append(hidden)
    weights = torch.full((2, 2, 20), 0.02)
    weights[:, :, [4, 11]] = 0.3
    probe = SinksProbe()
    for capture in captures(layers, visual, weights):
        probe.update(capture)
    values = probe.result().values
    assert values["sink_dims"] == [1415, 2533] and values["tau"] == 20 and values["notes"] == []
    assert values["sink_tokens"]["first token"]["value"] == [0, 0, 1, 1, 1, 1]
    assert values["sink_tokens"]["visual"]["value"] == [0, 0, 2, 2, 2, 2]
    given = values["visual_sinks"]
    assert given["of_tokens"]["value"][2:] == pytest.approx([2 / 16] * 4)
    assert given["of_attention"]["value"][2:] == pytest.approx([0.6 / (0.6 + 14 * 0.02)] * 4)
    # What a token gives is its weight times its number, counted from 1, in this stand-in.
    all_given = 0.3 * (5 + 12) + 0.02 * sum(token + 1 for token in range(2, 18) if token not in (4, 11))
    assert given["of_contribution"]["value"][2:] == pytest.approx([0.3 * (5 + 12) / all_given] * 4, rel=1e-5)
    # Columns 4 and 11 are places 2 and 9 of the picture: top row, and inside.
    expected = np.zeros(16)
    expected[[2, 9]] = 0.5
    assert np.ravel(given["place"]["map"]).tolist() == expected.tolist()
    assert (given["place"]["on_border"], given["place"]["border"]) == (0.5, 12 / 16)


def test_a_dimension_that_most_tokens_share_makes_no_sinks_and_a_note():
    visual = torch.zeros(1, 40, dtype=torch.bool)
    visual[:, 2:27] = True
    layers = []
    for layer in range(8):
        hidden = normal(1, 40, 1024, seed=layer)
        planted(hidden, 0, [7], 25.0)
        for token in range(1, 30) if layer == 4 else ():
            planted(hidden, token, [7], 25.0)
        layers.append(hidden)
    probe = SinksProbe()
    for capture in captures(layers, visual):
        probe.update(capture)
    values = probe.result().values
    assert values["sink_dims"] == [7]
    assert values["sink_tokens"]["visual"]["value"] == [0] * 8
    assert values["sink_tokens"]["first token"]["value"] == [0, 0, 1, 1, 0, 1, 1, 1]
    assert values["visual_sinks"] is None
    (note,) = values["notes"]
    assert "50% of the tokens" in note and "layer 4:" in note


def test_notes_on_a_hidden_size_that_is_too_small():
    assert threshold_notes(4096, 20.0, np.zeros(4)) == [] == threshold_notes(576, sink_threshold(576), np.zeros(4))
    (note,) = threshold_notes(16, sink_threshold(16), np.zeros(4))
    assert f"reaches {math.sqrt(2 * math.log(16)):.2g} times" in note and "of at most 4" in note


def test_thresholds_that_nothing_or_everything_reaches_are_refused():
    with pytest.raises(InputError, match="at hidden size 4096 a value is at most 64"):
        check_reachable(65.0, 4096)
    for probe in (SinksProbe(tau=64.5), SinkMaskingProbe(tau=64.5)):
        with pytest.raises(InputError, match="no token can reach"):
            probe.check(LLAMA, 100, None)
    SinksProbe(tau=64.0).check(LLAMA, 100, None)
    for make in (SinksProbe, SinkMaskingProbe):
        with pytest.raises(InputError, match="makes every token a sink"):
            make(tau=0.0)
