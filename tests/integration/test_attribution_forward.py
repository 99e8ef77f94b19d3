"""Replayed text rows beside full forwards with the same masks done literally."""

from __future__ import annotations

import contextlib

import pytest
import torch

from calibrate.probes.attribution.forward import TextRows
from calibrate.probes.attribution.masks import Ablation, family_masks, random_masks
from calibrate.probes.attribution.mean import image_grids, mean_image
from calibrate.probes.attribution.parts import find_attribution_parts
from calibrate.probes.attribution.prefix import capture
from planner.errors import CalibrationError, InputError, UnsupportedModelError
from tests import tiny
from tests.float64 import float64_throughout
from tests.integration.attribution_literal import Literal
from tests.tiny.configs import IMAGE

#: Llama, Mistral (sliding window), Qwen2, Qwen3 (key norms) and Gemma towers; plain and multi-axis rotary embeddings.
FAMILIES = ("llava", "llava_next", "mistral3", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")
MASKS = 2


def compare(model, family, dtype=torch.float64, rows=False, image=False, left_pad=0):
    """Largest difference between replayed and literal logits over a few random masks, and what the masks change at
    all.
    """
    others = [tiny.inputs(family, seed=seed, dtype=dtype) for seed in (1, 2)]
    inputs = tiny.inputs(family, dtype=dtype)
    parts = find_attribution_parts(model)
    seen = capture(model, parts, inputs)
    text = TextRows(
        parts, seen, mean_image(model, others, parts), image_grids(model, inputs, seen.visual.numel()), batch_size=2
    )
    heads = random_masks(MASKS, parts.layers * parts.heads, 0.5, seed=3).view(MASKS, parts.layers, parts.heads)
    ablation = Ablation(
        heads,
        random_masks(MASKS, seen.text_rows, 0.4, seed=4) if rows else None,
        random_masks(MASKS, seen.visual.numel(), 0.4, seed=5) if image else None,
    )
    literal = Literal(model, parts.visual_ids[0])
    literal.average(others)
    expected = torch.stack(
        [
            literal.logits(inputs, heads[m], ablation.rows[m] if rows else None, ablation.image[m] if image else None)
            for m in range(MASKS)
        ]
    )
    replayed = text.logits(ablation)
    dense = model(**inputs).logits[0, -1]
    return (replayed - expected).abs().max().item(), (expected - dense).abs().max(dim=1).values.min().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_literal_ablation_in_float64(family):
    with float64_throughout(), torch.no_grad():
        error, effect = compare(tiny.model(family, layers=2), family)
    assert error < 1e-10
    assert effect > 1e-2


@pytest.mark.parametrize(("rows", "image"), [(True, False), (False, True), (True, True)])
def test_blocked_rows_and_image_tokens_equal_literal_ablation(rows, image):
    with float64_throughout(), torch.no_grad():
        error, effect = compare(tiny.model("llava", layers=2), "llava", rows=rows, image=image)
    assert error < 1e-10
    assert effect > 1e-2


def test_float32_logits_within_1e_5():
    with torch.no_grad():
        error, _ = compare(tiny.model("llava", dtype=torch.float32, layers=3), "llava", dtype=torch.float32)
    assert error < 1e-5


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_model_is_unchanged_afterwards_and_after_an_exception(attn):
    model = tiny.model("llava", attn=attn, fresh=True)
    inputs = tiny.inputs("llava")
    before, hooks = model(**inputs).logits, count_hooks(model)
    parts = find_attribution_parts(model)
    with float64_throughout():
        seen = capture(model, parts, inputs)
        text = TextRows(parts, seen, mean_image(model, [inputs]), ((4, 4),))
        text.hidden(text.uniform(False))
        with contextlib.suppress(RuntimeError):
            text.hidden(Ablation(torch.ones(1, 4, 3, dtype=torch.bool)))  # three heads where there are four
    assert model.get_decoder().config._attn_implementation == attn
    assert count_hooks(model) == hooks
    assert torch.equal(model(**inputs).logits, before)


def test_everything_intact_is_the_model_and_batch_size_does_not_matter():
    model = tiny.model("llava")
    inputs = tiny.inputs("llava")
    parts = find_attribution_parts(model)
    with float64_throughout(), torch.no_grad():
        mean = mean_image(model, [tiny.inputs("llava", seed=1)], parts)
        seen = capture(model, parts, inputs)
        masks = Ablation(random_masks(9, 16, 0.75, 0).view(9, 4, 4))
        one, many = (TextRows(parts, seen, mean, ((4, 4),), batch_size=size) for size in (1, 9))
        assert torch.allclose(one.logits(masks), many.logits(masks), atol=1e-12)
        assert torch.allclose(many.logits(many.uniform(True))[0], model(**inputs).logits[0, -1], atol=1e-12)
        many.check(token=7)
        # A mean over the image itself changes nothing, whatever is ablated.
        itself = TextRows(parts, seen, mean_image(model, [inputs], parts), ((4, 4),))
        assert torch.allclose(itself.logits(masks), model(**inputs).logits[0, -1].expand(9, -1), atol=1e-12)


@pytest.mark.parametrize("size", [3, 50])
def test_ablations_that_share_layers_equal_literal_ablation_one_by_one(size):
    """Some differ in the last layer only, some are equal, some differ in visual tokens that no head reads."""
    model, inputs = tiny.model("llava", layers=3), tiny.inputs("llava")
    others = [tiny.inputs("llava", seed=seed) for seed in (1, 2)]
    parts = find_attribution_parts(model)
    heads = random_masks(4, 12, 0.5, seed=3).view(4, 3, 4)
    late = heads[:2].clone()
    late[:, 2] = ~late[:, 2]
    blind = torch.zeros(2, 3, 4, dtype=torch.bool)
    blind[:, 1, 2] = True
    heads = torch.cat([heads, late, heads[1:3], blind])
    with float64_throughout(), torch.no_grad():
        seen = capture(model, parts, inputs)
        rows, image = torch.ones(10, seen.text_rows, dtype=torch.bool), torch.ones(10, 16, dtype=torch.bool)
        rows[2:4, 1], image[3, 5], image[8, :8] = False, False, False
        order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
        text = TextRows(parts, seen, mean_image(model, others, parts), ((4, 4),), batch_size=size)
        found = text.logits(Ablation(heads[order], rows[order], image[order]))
        literal = Literal(model, parts.visual_ids[0])
        literal.average(others)
        expected = torch.stack([literal.logits(inputs, heads[m], rows[m], image[m]) for m in order.tolist()])
    assert (found - expected).abs().max() < 1e-10
    assert len(torch.unique(expected.round(decimals=8), dim=0)) == 9, "one is there twice"


def test_what_ablations_share_is_computed_once():
    model, inputs = tiny.model("llava", layers=6), tiny.inputs("llava")
    parts = find_attribution_parts(model)
    seen = capture(model, parts, inputs)
    text = TextRows(parts, seen, mean_image(model, [tiny.inputs("llava", seed=1)], parts), ((4, 4),), batch_size=64)
    ran = [0] * 6

    def counted(ablation):
        ran[:] = [0] * 6
        hooks = [
            layer.input_layernorm.register_forward_hook(
                lambda module, args, out, i=i: ran.__setitem__(i, ran[i] + out.shape[0])
            )
            for i, layer in enumerate(model.get_decoder().layers)
        ]
        with contextlib.ExitStack() as stack:
            for hook in hooks:
                stack.callback(hook.remove)
            text.logits(ablation)
        return list(ran)

    heads = family_masks(16, 6, 4, 0.75, seed=0).view(16, 6, 4)
    distinct = [len({tuple(mask[: layer + 1].flatten().tolist()) for mask in heads}) for layer in range(6)]
    assert counted(Ablation(heads)) == distinct and distinct[:2] == [4, 4] and distinct[2] <= 8 < distinct[5]
    # One head at a time: layer l is intact, or one of its four heads or of those before it is not.
    single = ~torch.eye(24, dtype=torch.bool).view(24, 6, 4)
    assert counted(Ablation(single)) == [5, 9, 13, 17, 21, 24]
    # Only head 1 of layer 4 reads the image, so no visual token matters before.
    one = torch.zeros(5, 6, 4, dtype=torch.bool)
    one[:, 4, 1] = True
    assert counted(Ablation(one, image=torch.eye(5, 16, dtype=torch.bool))) == [1, 1, 1, 1, 5, 5]


def test_left_padding_changes_nothing():
    model = tiny.model("llava")
    plain = tiny.inputs("llava")
    padded = {
        "input_ids": torch.nn.functional.pad(plain["input_ids"], (2, 0)),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(plain["input_ids"]), (2, 0)),
        "pixel_values": plain["pixel_values"],
    }
    parts = find_attribution_parts(model)
    masks = Ablation(random_masks(4, 16, 0.5, 0).view(4, 4, 4))
    logits = []
    with float64_throughout(), torch.no_grad():
        mean = mean_image(model, [tiny.inputs("llava", seed=1)], parts)
        for inputs in (plain, padded):
            logits.append(TextRows(parts, capture(model, parts, inputs), mean, ((4, 4),)).logits(masks))
    # Llava numbers padded positions too, which shifts all of them alike: rotary attention only sees differences.
    assert torch.allclose(logits[0], logits[1], atol=1e-10)


def test_a_mean_of_another_grid_is_interpolated_and_says_so():
    model = tiny.model("qwen2_vl")
    parts = find_attribution_parts(model)
    ragged = tiny.inputs("qwen2_vl", batch=2, ragged=True, only=1)
    with float64_throughout(), torch.no_grad():
        mean = mean_image(model, [tiny.inputs("qwen2_vl", seed=1)], parts)
        seen = capture(model, parts, ragged)
        grids = image_grids(model, ragged, seen.visual.numel())
        text = TextRows(parts, seen, mean, grids)
    assert mean.grid != grids[0]
    assert text.mean_grid == f"interpolated {mean.grid[0]}x{mean.grid[1]} to {grids[0][0]}x{grids[0][1]}"


def test_refusals_name_the_part_or_the_sample():
    model = tiny.model("llava")
    parts = find_attribution_parts(model)
    inputs = tiny.inputs("llava")
    with pytest.raises(InputError, match="no visual token"):
        capture(model, parts, {"input_ids": torch.full((1, 4), 7)}, "seven")
    with pytest.raises(InputError, match="no text after the image"):
        capture(model, parts, {**inputs, "input_ids": torch.tensor([[7, IMAGE]])}, "seven")
    with pytest.raises(InputError, match="one sample at a time"):
        capture(model, parts, tiny.inputs("llava", batch=2))
    with pytest.raises(UnsupportedModelError, match="see the question"):
        capture(tiny.model("paligemma"), find_attribution_parts(tiny.model("paligemma")), tiny.inputs("paligemma"))
    with pytest.raises(UnsupportedModelError, match="rotate-half"):
        capture(tiny.model("glm4v"), find_attribution_parts(tiny.model("glm4v")), tiny.inputs("glm4v"))
    with pytest.raises(CalibrationError, match="at least one sample"):
        mean_image(model, [])
    broken = {**inputs, "pixel_values": torch.full_like(inputs["pixel_values"], float("nan"))}
    with pytest.raises(CalibrationError, match=r"layer 0 .* sample seven"):
        capture(model, parts, broken, "seven")


def test_a_model_without_the_parts_is_refused_by_their_name():
    with pytest.raises(UnsupportedModelError, match="not a transformers model"):
        find_attribution_parts(torch.nn.Linear(2, 2))
    model = tiny.model("llava", fresh=True)
    del model.get_decoder().layers[2].self_attn.v_proj
    with pytest.raises(UnsupportedModelError, match=r"v_proj in the attention of layer 2"):
        find_attribution_parts(model)
