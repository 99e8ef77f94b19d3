"""Pruning before the language model by attention in the vision encoder, against the encoder's attention written out.

For every family a slow reference says in loops which patches each visual token stands for, and takes their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from planner.cost import cost
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.runtime.model.adapters import find_parts
from planner.runtime.selection.encoder import EncoderScores
from planner.runtime.tensors.layout import read_layout
from planner.schedule import Count, Schedule, Select, Stage
from planner.spec import ModelSpec
from tests import tiny
from tests.float64 import float64_throughout
from tests.integration.test_cost_counted import workload_of
from tests.reference.orders import salient_then_distant
from tests.tiny import transformers_has

KEPT = 6
ENTRY = Schedule(stages=(Stage(first=0, last=4),), entry=Select(rank_by="encoder_attention", keep=Count(count=KEPT)))
#: Two images in each sample, of different sizes where a family has sizes; three in the second where it has not.
BATCH = {"batch": 2, "left_pad": 2, "images": 2, "ragged": True}


def attention_maps(model: Any, inputs: dict[str, Tensor], layer: int) -> list[Tensor]:
    """``[H, n, n]`` of one encoder layer, for every sequence that its attention was called with."""
    config = model.config.vision_config
    modules: list[Any] = []
    maps: dict[int, list[Tensor]] = {}

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if not any(module is known for known in modules):
            modules.append(module)
        scaling = options.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
        weights = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
        maps.setdefault([known is module for known in modules].index(True), []).extend(weights)
        return torch.einsum("bhqk,bhkd->bqhd", weights, value).contiguous(), None

    with exchanged_attention(config, attend), torch.no_grad(), float64_throughout():
        model(**inputs)
    return maps[layer % len(modules)]


@contextmanager
def exchanged_attention(config: Any, function: Callable[..., Any]) -> Iterator[None]:
    before = config._attn_implementation
    AttentionInterface.register("literal", function)
    AttentionMaskInterface.register("literal", eager_mask)
    config._attn_implementation = "literal"
    try:
        yield
    finally:
        config._attn_implementation = before
        AttentionInterface._global_mapping.pop("literal")
        AttentionMaskInterface._global_mapping.pop("literal")


def from_class_token(weights: Tensor) -> Tensor:
    """Attention that the class token gives to each patch."""
    return weights[:, 0, 1:].mean(0)


def received(weights: Tensor) -> Tensor:
    """No class token: attention received, mean over all patches."""
    return weights.mean((0, 1))


def as_they_are(tile: Tensor) -> Tensor:
    return tile


def in_blocks(tile: Tensor) -> Tensor:
    """A visual token is 2 x 2 of the 8 x 8 patches: their mean, row by row."""
    grid = tile.reshape(8, 8)
    return torch.stack([grid[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for i in range(4) for j in range(4)])


def in_fours(tile: Tensor) -> Tensor:
    """The four patches of a visual token come one after the other."""
    return torch.stack([tile[i : i + 4].mean() for i in range(0, len(tile), 4)])


def by_tile(score: Callable[[Tensor], Tensor], layer: int, tokens: Callable[[Tensor], Tensor]) -> Any:
    def scores(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        return torch.cat([tokens(score(weights)) for weights in attention_maps(model, inputs, layer)])

    return scores


def unpadded(score: Callable[[Tensor], Tensor], layer: int) -> Any:
    """A base view of 3 x 3 patches, then rows across tiles of 3 x 3, each closed by a newline, which scores 0.

    24 x 48 fills 1 x 2 tiles. 32 x 48 lies in 2 x 2 tiles with one row of padding above and below.
    """

    def scores(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        tiles = iter([score(weights) for weights in attention_maps(model, inputs, layer)])
        found: list[float] = []
        for height, _ in inputs["image_sizes"].tolist():
            found += next(tiles).tolist()
            down, rows = (1, range(3)) if height == 24 else (2, range(1, 5))
            grid = [[next(tiles) for _ in range(2)] for _ in range(down)]
            for row in rows:
                for column in range(6):
                    found.append(float(grid[row // 3][column // 3][3 * (row % 3) + column % 3]))
                found.append(0.0)
        return torch.tensor(found, dtype=torch.float64)

    return scores


def by_windows(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Four patches a token, and tokens window by window: 2 x 2 of them, less at the edges. Layer 1 sees all."""
    found = []
    images = zip(inputs["image_grid_thw"].tolist(), attention_maps(model, inputs, 1), strict=True)
    for (_, height, width), weights in images:
        tokens = iter(in_fours(received(weights)).tolist())
        grid = torch.zeros(height // 2, width // 2, dtype=torch.float64)
        for top in range(0, height // 2, 2):
            for left in range(0, width // 2, 2):
                for row in range(top, min(top + 2, height // 2)):
                    for column in range(left, min(left + 2, width // 2)):
                        grid[row, column] = next(tokens)
        found.append(grid.flatten())
    return torch.cat(found)


def in_one_sequence(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Patches of 4 x 4 pixels of all images in one sequence, each image sees itself; 2 x 2 of them are a token."""
    (weights,) = attention_maps(model, inputs, -1)
    found, start = [], 0
    for height, width in (inputs["image_sizes"] // 4).tolist():
        own = weights[:, start : start + height * width, start : start + height * width]
        grid = received(own).reshape(height, width)
        for row in range(0, height, 2):
            found += [grid[row : row + 2, column : column + 2].mean() for column in range(0, width, 2)]
        start += height * width
    return torch.stack(found)


#: vision_feature_layer -2 is the output of the last layer but one; VipLLaVA has several, of which the deepest counts.
SCORES: dict[str, Callable[[Any, dict[str, Tensor]], Tensor]] = {
    "llava": by_tile(from_class_token, -2, as_they_are),
    "vipllava": by_tile(from_class_token, -2, as_they_are),
    "paligemma": by_tile(received, -1, as_they_are),
    "gemma3": by_tile(received, -1, in_blocks),
    "internvl": by_tile(from_class_token, -1, in_blocks),
    "qwen2_vl": by_tile(received, -1, in_fours),
    "qwen3_vl": by_tile(received, -1, in_fours),
    "llava_next": unpadded(from_class_token, -2),
    "llava_onevision": unpadded(received, -1),
    "qwen2_5_vl": by_windows,
    "mistral3": in_one_sequence,
}
FAMILIES = [family for family in SCORES if transformers_has(family)]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_mean_over_a_token_s_patches(family: str, attn: str) -> None:
    model, inputs = tiny.model(family, attn=attn), tiny.inputs(family, **BATCH)
    layout = read_layout(inputs["input_ids"], find_parts(model).visual_ids, inputs["attention_mask"])
    expected = SCORES[family](model, inputs)
    scores = EncoderScores(model)
    with torch.no_grad(), float64_throughout():
        plain = model(**inputs).logits
        with scores.watching():
            watched = model(**inputs).logits
    found = scores.take(layout, 2)
    assert torch.equal(plain, watched), "watching changed the model"
    assert (found[layout.visual] - expected).abs().max() < 1e-12
    assert not found[~layout.visual].any()


def test_shrunken_images_rank_by_interpolated_scores() -> None:
    """LLaVA-OneVision shrinks large images: 3 x 6 patches to 2 x 4 tokens, bilinear, corners not aligned."""
    model, inputs = tiny.model("llava_onevision", fresh=True), tiny.inputs("llava_onevision")
    model.config.vision_aspect_ratio = "anyres_max_1"
    # A base view of 9, and 2 rows of 4 with a newline instead of 3 rows of 6 with one.
    surplus = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:11, 0]
    kept = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool).index_fill(0, surplus, False)
    inputs |= {name: inputs[name][:, kept] for name in ("input_ids", "attention_mask")}
    base, left, right = (received(weights) for weights in attention_maps(model, inputs, -1))
    grid = torch.cat([left.reshape(3, 3), right.reshape(3, 3)], dim=1)
    expected = base.tolist()
    for row in (0.25, 1.75):
        for column in (0.25, 1.75, 3.25, 4.75):
            (i, y), (j, x) = divmod(row, 1), divmod(column, 1)
            near = grid[int(i) : int(i) + 2, int(j) : int(j) + 2]
            expected.append(float(torch.tensor([1 - y, y]).double() @ near @ torch.tensor([1 - x, x]).double()))
        expected.append(0.0)
    layout = read_layout(inputs["input_ids"], find_parts(model).visual_ids, inputs["attention_mask"])
    scores = EncoderScores(model)
    with torch.no_grad(), float64_throughout(), scores.watching():
        model(**inputs)
    assert (scores.take(layout, 1)[layout.visual] - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_the_best_patches_survive(family: str) -> None:
    """Every token is ranked within its own sample."""
    model, inputs = tiny.model(family), tiny.inputs(family, **BATCH)
    parts = find_parts(model)
    counts = read_layout(inputs["input_ids"], parts.visual_ids, inputs["attention_mask"]).visual_counts
    scores = SCORES[family](model, inputs).split(list(counts))
    with attach(model, ENTRY) as handle, torch.no_grad(), float64_throughout():
        model(**inputs)
        kept = handle.kept[0]
    for sample, found in enumerate(scores):
        assert kept[sample] == sorted(found.topk(KEPT).indices.tolist())


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl", "llava_next"])
def test_attended_patches_and_then_distant_ones_survive(family: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, **BATCH)
    scores = SCORES[family](model, inputs)
    entry = Select(rank_by="salient_then_distant", keep=Count(count=KEPT), salient=0.4)
    with attach(model, Schedule(stages=(Stage(first=0, last=4),), entry=entry)) as handle, torch.no_grad():
        with float64_throughout():
            model(**inputs)
        kept, visual = handle.kept[0], read_layout(inputs["input_ids"], find_parts(model).visual_ids, None).visual
    with torch.no_grad(), float64_throughout():
        embedded = entering(model, inputs)
    start = 0
    for sample, found in enumerate(kept):
        count = int(visual[sample].sum())
        features, attention = embedded[sample, visual[sample]], scores[start : start + count]
        # .4 of 6 is 2.4: two by attention.
        assert found == sorted(salient_then_distant(features, attention, 2, KEPT))
        start += count


def entering(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """``[B, n, d]``: what enters the text tower."""
    seen: list[Tensor] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    hook = find_parts(model).tower.register_forward_pre_hook(note, with_kwargs=True)
    try:
        model(**inputs)
    finally:
        hook.remove()
    return seen[0]


@pytest.mark.parametrize("merge", ["none", "nearest"])
@pytest.mark.parametrize("rank_by", ["encoder_attention", "salient_then_distant"])
@pytest.mark.parametrize("family", ["llava", "gemma3", "llava_next"])
def test_what_it_costs_is_what_is_counted(family: str, rank_by: str, merge: str) -> None:
    model, inputs = tiny.model(family, window=256), tiny.inputs(family, batch=2)
    entry = Select.model_validate({"rank_by": rank_by, "keep": Count(count=KEPT), "merge": merge})
    schedule = Schedule(stages=(Stage(first=0, last=4),), entry=entry)
    spec = ModelSpec.from_config(model.config.to_dict())
    with attach(model, schedule), torch.no_grad(), FlopCounter() as counter:
        model(**inputs, logits_to_keep=1)
    assert counter.total == cost(spec, workload_of(family, spec, inputs), schedule).prefill_flops


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_repeat_the_scores_of_their_sample(family: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, **BATCH)
    with attach(model, ENTRY) as handle:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        alone = handle.kept[0]
        model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=3)
        assert handle.kept[0] == [sample for sample in alone for _ in range(3)]


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "mistral3"])
def test_watching_leaves_nothing_behind(family: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family)
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    with pytest.raises(KeyboardInterrupt), attach(model, ENTRY), torch.no_grad():
        model(**inputs)
        raise KeyboardInterrupt
    assert before == {name: sorted(vars(module)) for name, module in model.named_modules()}
    assert hooks == {name: len(module._forward_hooks) for name, module in model.named_modules()}
