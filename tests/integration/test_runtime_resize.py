"""Smaller images in families that take them of any size: what the decoder gets is what a smaller image would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from planner.cost import cost
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.runtime.model.adapters import find_parts
from planner.schedule import Schedule, Stage
from planner.spec import ModelSpec
from tests import tiny
from tests.integration.test_cost_counted import workload_of
from tests.integration.test_runtime_generation import greedy
from tests.schedules import LAYERS, select

FAMILIES = [family for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v") if tiny.transformers_has(family)]
#: Patches of 4 x 4 pixels, 2 x 2 of them a token.
PATCH, MERGE = 4, 2
#: The image of the second sample: 8 x 6 patches, 4 x 3 tokens. Cells by budget: bands, and cells in each.
CELLS = {2: (1, 1), 4: (2, 2), 6: (2, 2, 2), 7: (2, 2, 3)}


def resized(keep: int | float) -> Schedule:
    return Schedule(stages=(Stage(first=0, last=LAYERS),), entry=select("grid", keep, merge="pixels"))


def patches_of(image: Tensor) -> Tensor:
    """``[p, C * T * 4 * 4]`` from ``[C * T, height, width]``, block by block, as the processors order them."""
    rows, step = [], PATCH * MERGE
    for top in range(0, image.shape[1], step):
        for left in range(0, image.shape[2], step):
            for y in (top, top + PATCH):
                for x in (left, left + PATCH):
                    rows.append(image[:, y : y + PATCH, x : x + PATCH].flatten())
    return torch.stack(rows)


def encoded(model: Any, patches: Tensor, rows: int, columns: int) -> list[Tensor]:
    """What the vision encoder makes of an image: the tokens, and the features of deepstack families."""
    with torch.no_grad():
        output = find_encoder(model)(patches, grid_thw=torch.tensor([[1, rows * MERGE, columns * MERGE]]))
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, tuple):
        return [output[0], *output[1]]
    return [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]


def find_encoder(model: Any) -> Any:
    return next(
        m for m in model.modules() if getattr(m, "config", None).__class__ is model.config.vision_config.__class__
    )


def entering(model: Any, inputs: dict[str, Tensor], schedule: Schedule) -> list[Tensor]:
    """The visual rows that enter the text tower, and the features of deepstack families."""
    seen: list[Tensor] = []
    visual = inputs["input_ids"] == model.config.image_token_id

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.extend([kwargs["inputs_embeds"][visual], *(kwargs.get("deepstack_visual_embeds") or [])])

    hook = find_parts(model).tower.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad(), attach(model, schedule):
            model(**inputs)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("count", CELLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_middle_of_each_cell_gets_the_smaller_image_s_token(family: str, count: int) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=2, ragged=True, only=1)
    image = torch.randn(3 * 2, 32, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs["pixel_values"] = patches_of(image)
    bands, across = len(CELLS[count]), max(CELLS[count])
    size = (bands * 8, across * 8)
    small = torch.nn.functional.interpolate(image[None].float(), size, mode="bicubic", antialias=True)[0].double()
    found = entering(model, inputs, resized(count))
    assert len(found) == (1 if family != "qwen3_vl" else 1 + len(model.config.vision_config.deepstack_visual_indexes))
    for values, tokens in zip(found, encoded(model, patches_of(small), bands, across), strict=True):
        wanted, places = [], []
        for band, cells in enumerate(CELLS[count]):
            rows = [row for row in range(4) if band * 4 // bands <= row < (band + 1) * 4 // bands]
            for cell in range(cells):
                columns = [c for c in range(3) if cell * 3 // cells <= c < (cell + 1) * 3 // cells]
                places.append(rows[(len(rows) - 1) // 2] * 3 + columns[(len(columns) - 1) // 2])
                mine = [
                    band * across + c
                    for c in range(across)
                    if cell * across // cells <= c < (cell + 1) * across // cells
                ]
                wanted.append(tokens[mine].mean(0))
        torch.testing.assert_close(values[places], torch.stack(wanted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_with_several_images_answers_as_each_sample_alone(family: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    batch = {"batch": 2, "left_pad": 2, "images": 2, "ragged": True}
    with attach(model, resized(0.4)):
        together = greedy(model, tiny.inputs(family, **batch))
        alone = [greedy(model, tiny.inputs(family, **batch, only=sample)) for sample in range(2)]
        beams = greedy(model, tiny.inputs(family, **batch), num_beams=2)
    assert torch.equal(together, torch.cat(alone))
    assert beams.shape == together.shape


@pytest.mark.parametrize("count", [3, 5, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_s_saving_is_counted(family: str, count: int) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=2)
    spec = ModelSpec.from_config(model.config.to_dict())
    expected = cost(spec, workload_of(family, spec, inputs), resized(count))
    with attach(model, resized(count)), torch.no_grad(), FlopCounter() as counter:
        model(**inputs, logits_to_keep=1)
    assert counter.total == expected.prefill_flops
    pooled = resized(count).model_copy(update={"entry": select("grid", count, merge="cell")})
    assert expected.prefill["vision"] <= cost(spec, workload_of(family, spec, inputs), pooled).prefill["vision"]


@pytest.mark.parametrize("family", ["llava", "internvl", "llava_next", "mistral3"])
def test_where_images_have_one_size_tokens_are_pooled(family: str) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=2, left_pad=2)
    found = []
    for merge in ("pixels", "cell"):
        entry = select("grid", 5, merge=merge)
        with attach(model, resized(5).model_copy(update={"entry": entry})), torch.no_grad():
            found.append(model(**inputs).logits[:, -1])
    assert torch.equal(*found)
