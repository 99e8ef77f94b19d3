"""The linear model, the curves and the cosines of head attribution, on responses whose answer is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibrate.probes.attribution import regression
from calibrate.probes.attribution.clusters import head_clusters
from calibrate.probes.attribution.curves import compare_orders, curve, single_head_effects
from calibrate.probes.attribution.masks import FAMILY, family_masks, random_masks
from calibrate.probes.attribution.mean import MeanImage, resize
from calibrate.probes.attribution.regression import attribute_entries, check_masks, fit_heads, minimum
from calibrate.probes.attribution.rotary import rotate, same_rotation
from calibrate.probes.attribution.similarity import cosines, mean_cosines
from planner.errors import InputError

#: Four heads that carry 50, 35, 10 and 5 % of the answer, in an order that sorting must undo.
SHARES = np.asarray([0.10, 0.50, 0.05, 0.35])


def additive(masks):
    return np.asarray(masks, float) @ SHARES


class TestMasks:
    def test_each_mask_ablates_the_same_share_and_masks_differ(self):
        masks = random_masks(200, 80, 0.75, seed=0)
        assert masks.shape == (200, 80)
        assert (masks.sum(dim=1) == 20).all()
        assert len(torch.unique(masks, dim=0)) == 200
        assert masks.float().mean(dim=0).std() < 0.05  # no head is preferred

    def test_a_seed_gives_the_same_masks_and_another_seed_others(self):
        assert torch.equal(random_masks(5, 8, 0.5, 1), random_masks(5, 8, 0.5, 1))
        assert not torch.equal(random_masks(5, 8, 0.5, 1), random_masks(5, 8, 0.5, 2))

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0])
    def test_a_share_that_leaves_no_choice_is_refused(self, share):
        with pytest.raises(InputError, match="leaves no choice"):
            random_masks(5, 8, share, 0)

    def test_families_share_layers_and_each_mask_is_an_ordinary_one(self):
        layers, heads = 6, 8
        masks = family_masks(4000, layers, heads, 0.75, seed=0)
        assert masks.shape == (4000, 48) and (masks.sum(dim=1) == 12).all()
        families = masks.view(1000, FAMILY, layers, heads)
        assert (families[:, :, :2] == families[:, :1, :2]).all()
        assert (families[:, [0, 2], :4] == families[:, [1, 3], :4]).all()
        assert (families[:, 0, 2:4] != families[:, 2, 2:4]).any(dim=(1, 2)).float().mean() > 0.95
        assert (families[:, 0, 4:] != families[:, 1, 4:]).any(dim=(1, 2)).float().mean() > 0.95
        # Any entry is as likely as any other, alone (0.25) and with any other (12 x 11 of 48 x 47 pairs).
        for member in range(FAMILY):
            drawn = masks[member::FAMILY].double()
            assert (drawn.mean(dim=0) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 1000) ** 0.5
            pairs = (drawn.T @ drawn / 1000)[~torch.eye(48, dtype=torch.bool)]
            assert (pairs - 12 * 11 / (48 * 47)).abs().max() < 5 * (0.0585 * 0.9415 / 1000) ** 0.5
        assert torch.equal(family_masks(10, 6, 8, 0.75, 0), family_masks(12, 6, 8, 0.75, 0)[:10])
        assert not torch.equal(masks[:10], family_masks(10, 6, 8, 0.75, 1))


class TestClusters:
    def test_heads_that_all_samples_use_are_told_from_those_of_some(self):
        coefficients = np.zeros((6, 3, 4))
        coefficients[:, 1, 2], coefficients[:, 2, 0] = 0.5, 0.45  # whatever the sample
        coefficients[:3, 0, 1], coefficients[:3, 2, 3] = 0.4, 0.42  # the first three
        coefficients[3:, 0, 3] = 0.2  # the others
        coefficients[:, 0, 0] = 0.09  # never enough
        found = head_clusters(coefficients + 0.001 * np.arange(6)[:, None, None])
        common, special = found["clusters"]
        assert common["heads"] == [[1, 2], [2, 0]] and common["used_by"] == 1.0
        assert sorted(special["heads"]) == [[0, 1], [0, 3], [2, 3]] and special["used_by"] == pytest.approx(0.5)
        assert common["mean"] == pytest.approx(0.475 + 0.0025)
        # Neighbours in the tree: the two heads of the same three samples stand beside each other.
        order = found["heads"]
        assert abs(order.index([0, 1]) - order.index([2, 3])) == 1
        assert found["vectors"][order.index([0, 3])] == pytest.approx([0, 0.001, 0.002, 0.203, 0.204, 0.205])

    def test_too_few_samples_or_heads_make_no_clusters(self):
        assert head_clusters(np.ones((1, 3, 4))) is None
        assert head_clusters(np.full((5, 3, 4), 0.05)) is None


class TestRegression:
    def test_one_head_that_decides_has_the_coefficient_derived_by_hand(self):
        # y = x_2. Elastic net in one dimension: w = (v - alpha * l1_ratio) / (v + alpha * (1 - l1_ratio)), v = var(x).
        masks = random_masks(2000, 8, 0.75, seed=0)
        found = fit_heads(masks.numpy(), masks[:, 2].double().numpy())
        train = masks.numpy()[np.arange(2000) % 5 != 4, 2].astype(float)
        shrink = 5e-4 * 0.5
        assert found.coefficients[2] == pytest.approx((train.var() - shrink) / (train.var() + shrink), abs=1e-3)
        assert np.abs(np.delete(found.coefficients, 2)).max() < 1e-3
        assert found.r2 > 0.9999 and found.pearson == pytest.approx(1) and found.converged

    def test_r2_and_pearson_are_those_of_the_held_out_fifth(self):
        masks = random_masks(500, 8, 0.5, seed=0).numpy()
        logits = masks @ np.arange(8.0) + np.random.default_rng(0).normal(size=500)
        found = fit_heads(masks, logits)
        held_out = np.arange(500) % 5 == 4
        predicted = masks[held_out] @ found.coefficients + found.intercept
        true = logits[held_out]
        assert held_out.sum() == 100
        assert found.r2 == pytest.approx(1 - np.mean((true - predicted) ** 2) / true.var())
        centred = (true - true.mean(), predicted - predicted.mean())
        assert found.pearson == pytest.approx(
            (centred[0] @ centred[1]) / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1]))
        )
        assert 0.5 < found.r2 < 1

    def test_stops_when_the_held_out_r2_has_settled_and_not_before(self):
        evaluated = []

        def respond(masks):
            evaluated.append(len(masks))
            return masks.double().numpy() @ np.arange(16.0)

        masks = random_masks(10_000, 16, 0.75, seed=0)
        found = attribute_entries(masks, respond)
        assert found.settled and found.masks == 3000 == sum(evaluated)
        evaluated.clear()
        assert attribute_entries(masks, respond, early_stop=False).masks == 10_000 == sum(evaluated)

    def test_does_not_stop_while_r2_moves(self, monkeypatch):
        moving = iter(np.arange(100) * 0.01)
        monkeypatch.setattr(
            regression,
            "fit_heads",
            lambda masks, logits, family: regression.Fit(np.zeros(1), 0, next(moving), 0, len(masks)),
        )
        assert attribute_entries(random_masks(6000, 16, 0.75, 0), lambda m: np.zeros(len(m))).masks == 6000

    def test_a_family_is_held_out_or_not_as_a_whole(self):
        masks = family_masks(200, 3, 4, 0.5, seed=0).numpy()
        logits = np.random.default_rng(0).normal(size=200)
        held_out = np.arange(200) // FAMILY % 5 == 4
        found = fit_heads(masks, logits, family=FAMILY)
        logits[held_out] += 100.0  # whatever is held out has no part in the fit
        moved = fit_heads(masks, logits, family=FAMILY)
        np.testing.assert_array_equal(moved.coefficients, found.coefficients)
        assert moved.r2 != found.r2

    @pytest.mark.parametrize("family", [1, FAMILY])
    def test_the_number_of_masks_asked_for_is_enough(self, family):
        for entries in range(1, 200):
            check_masks(minimum(entries, family), entries, family=family)
            with pytest.raises(InputError, match="too few"):
                check_masks(entries - 1, entries, family=family)

    def test_too_few_masks_are_refused_with_the_number_needed(self):
        masks = random_masks(98, 80, 0.75, seed=0)
        with pytest.raises(InputError, match="masks=100 or more"):
            attribute_entries(masks, lambda m: np.zeros(len(m)))

    def test_a_constant_response_explains_nothing(self):
        found = fit_heads(random_masks(100, 8, 0.5, 0).numpy(), np.ones(100))
        assert found.r2 == 0 and found.pearson == 0 and not found.coefficients.any()


class TestCurves:
    def test_heads_needed_are_those_counted_by_hand(self):
        # In order of importance 0.50, 0.85, 0.95, 1.00: two heads pass 0.8; without them 0.15 is left, below 0.2.
        found = curve(np.argsort(-SHARES), additive)
        assert found.heads == (0, 1, 2, 3, 4)
        assert found.faithfulness == pytest.approx([0, 0.50, 0.85, 0.95, 1.0])
        assert found.completeness == pytest.approx([1, 0.50, 0.15, 0.05, 0.0])
        assert (found.faithful_heads, found.complete_heads) == (2, 2)
        # The worst order: 0.05, 0.15, 0.50, 1.00.
        worst = curve(np.argsort(SHARES), additive)
        assert (worst.faithful_heads, worst.complete_heads) == (4, 4)

    def test_many_heads_are_run_on_a_grid_and_the_crossing_is_still_exact(self):
        shares = np.zeros(1000)
        shares[:437] = 1 / 437  # the 350th head passes 0.8 (350 / 437 = 0.8009), and without 350 heads 0.1991 is left
        runs = []

        def respond(masks):
            runs.append(len(masks))
            return masks.double().numpy() @ shares

        found = curve(np.arange(1000), respond)
        assert (found.faithful_heads, found.complete_heads) == (350, 350)
        assert sum(runs) < 400

    def test_orders_are_compared_on_the_same_response(self):
        single = single_head_effects(additive, 4)
        assert single == pytest.approx(SHARES)
        found = compare_orders(additive, SHARES, attention=-SHARES, causal=single, seed=0)
        assert found["attribution"].faithful_heads == found["causal"].faithful_heads == 2
        assert found["attention"].faithful_heads == 4
        assert 2 <= found["random"].faithful_heads <= 4
        assert found["random"].faithfulness[[0, -1]] == pytest.approx([0, 1])


class TestMeanImage:
    def test_interpolation_of_a_ramp_is_the_ramp(self):
        ramp = torch.arange(16.0).view(4, 4)  # value 4 * row + column
        table = torch.stack([ramp.flatten(), -ramp.flatten()], dim=-1)[None]
        halved = resize(table, (4, 4), (2, 2))[0, :, 0]
        assert torch.allclose(halved, torch.tensor([2.5, 4.5, 10.5, 12.5]))  # means of 2 x 2 blocks
        assert resize(table, (4, 4), (4, 4)) is table

    def test_grids_are_laid_one_after_another_and_a_row_is_not_stretched(self):
        mean = MeanImage((torch.arange(4.0).view(1, 4, 1),), (torch.ones(1, 4, 1),), 3, (2, 2))
        keys, values, how = mean.on(((2, 2), (4, 4)))
        assert keys[0].shape == values[0].shape == (1, 20, 1)
        assert torch.equal(keys[0][0, :4, 0], torch.arange(4.0)) and how == "interpolated 2x2 to 4x4"
        with pytest.raises(InputError, match="2x2 and of 1x5 tokens"):
            mean.on(((1, 5),))


def test_rotation_is_the_models_own_and_another_form_is_noticed():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    keys = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    angles = torch.outer(torch.arange(5.0), 10 ** -torch.arange(4.0)).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    expected = apply_rotary_pos_emb(keys[None], keys[None], cos[None], sin[None])[1][0]
    assert torch.allclose(rotate(keys, cos, sin), expected)
    assert same_rotation(keys, expected, cos, sin)
    interleaved = torch.stack([keys[..., :4], keys[..., 4:]], dim=-1).flatten(-2)
    assert not same_rotation(interleaved, expected, cos, sin)
    partial = rotate(keys, cos[:, :4], sin[:, :4])
    assert torch.equal(partial[..., 4:], keys[..., 4:])


def test_cosines_by_hand():
    rows = np.asarray([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    assert cosines(rows)[0] == pytest.approx([1, 0.6, 0, 0])
    means = mean_cosines(rows[:3], prompts=["a", "a", "b"], images=["x", "y", "y"])
    assert means == {
        "all": pytest.approx((0.6 + 0 + 0.8) / 3),
        "same_prompt": pytest.approx(0.6),
        "same_image": pytest.approx(0.8),
    }
    assert mean_cosines(rows[:1], ["a"], ["x"]) == {"all": None, "same_prompt": None, "same_image": None}
