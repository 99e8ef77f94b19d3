"""Selections for videos, against loops over frames; alone and in a batch, in generate and in forward."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from planner.cost import cost
from planner.errors import UnsupportedModelError
from planner.runtime import attach
from planner.runtime.count import FlopCounter
from planner.runtime.model.adapters import find_parts
from planner.runtime.selection.frames import allot
from planner.schedule import RankBy, Schedule, Stage
from planner.spec import ModelSpec
from planner.workload import Workload
from tests import tiny
from tests.integration.test_runtime_generation import greedy
from tests.schedules import LAYERS, select
from tests.tiny.configs import PAD, VIDEO, VISION_END, VISION_START

FAMILIES = ["qwen2_vl", "qwen2_5_vl"]
#: Frames, rows and columns of patches; 2 x 2 patches are a token.
VIDEOS = [(3, 4, 8), (4, 4, 4)]
KEPT = 9


def inputs_of(family: str, videos: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """One video a sample, batched with padding on the left."""
    samples, pixels = [], []
    for frames, rows, columns in videos:
        generator = torch.Generator().manual_seed(frames)
        pixels.append(torch.randn(frames * rows * columns, 96, generator=generator, dtype=torch.float64))
        text = torch.randint(5, 110, (9,), generator=generator).tolist()
        placeholders = [VIDEO] * (frames * rows * columns // 4)
        samples.append([*text[:3], VISION_START, *placeholders, VISION_END, *text[3:]])
    width = max(map(len, samples))
    ids = torch.tensor([[PAD] * (width - len(sample)) + sample for sample in samples])
    found = {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "pixel_values_videos": torch.cat(pixels),
        "video_grid_thw": torch.tensor(videos),
    }
    if "mm_token_type_ids" in inspect.signature(tiny.model(family, layers=LAYERS).forward).parameters:
        found["mm_token_type_ids"] = 2 * (ids == VIDEO).int()
    return found


def schedule(rank_by: RankBy, keep: int = KEPT) -> Schedule:
    return Schedule(stages=(Stage(first=0, last=LAYERS),), entry=select(rank_by, keep))


def features_of(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """``[tokens, d]`` of each sample's video as it enters the text tower."""
    seen: list[Tensor] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    hook = find_parts(model).tower.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    return [row[ids == VIDEO] for row, ids in zip(seen[0], inputs["input_ids"], strict=True)]


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def changed(features: Tensor, frames: int) -> list[int]:
    """The first frame, as far as it fits, then the largest changes."""
    size = len(features) // frames
    change = {i: 1 - cosine(features[i], features[i - size]) for i in range(size, len(features))}
    return sorted([*range(size), *sorted(change, key=lambda i: -change[i])][:KEPT])


def unique(features: Tensor, frames: int) -> list[int]:
    size, video = len(features) // frames, features.mean(0)
    alike = [cosine(token, video) for token in features]
    means = [-sum(alike[f * size : (f + 1) * size]) / size for f in range(frames)]
    powers = [math.exp((mean - max(means)) / 0.01) for mean in means]
    weights = [1 + power / sum(powers) - 1 / frames for power in powers]
    chosen = []
    for frame, budget in enumerate(allot(KEPT, weights, [size] * frames)):
        own = range(frame * size, (frame + 1) * size)
        mean = features[frame * size : (frame + 1) * size].mean(0)
        chosen += sorted(own, key=lambda i: alike[i] + cosine(features[i], mean))[:budget]
    return sorted(chosen)


@pytest.mark.parametrize(("rank_by", "rule"), [("frame_change", changed), ("frame_uniqueness", unique)])
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_chosen_as_defined_alone_and_in_a_batch(family: str, rank_by: RankBy, rule: Any) -> None:
    model, inputs = tiny.model(family, layers=LAYERS), inputs_of(family, VIDEOS)
    expected = [rule(x, video[0]) for x, video in zip(features_of(model, inputs), VIDEOS, strict=True)]
    with attach(model, schedule(rank_by)) as handle, torch.no_grad():
        model(**inputs)
        assert handle.kept[0] == expected
        together = greedy(model, inputs)
        assert handle.kept[0] == expected
        for sample, video in enumerate(VIDEOS):
            assert torch.equal(greedy(model, inputs_of(family, [video]))[0], together[sample])


@pytest.mark.parametrize("rank_by", ["frame_change", "frame_uniqueness"])
def test_what_it_costs_is_what_is_counted(rank_by: RankBy) -> None:
    model, inputs = tiny.model("qwen2_vl", layers=LAYERS), inputs_of("qwen2_vl", VIDEOS[:1])
    spec = ModelSpec.from_config(model.config.to_dict())
    workload = Workload(visual_tokens=24, text_tokens=7, system_tokens=4)
    expected = cost(spec, workload, schedule(rank_by)).prefill
    dense = cost(spec, workload, Schedule(stages=(Stage(first=0, last=LAYERS),))).prefill
    counted = []
    for plan in (schedule(rank_by), schedule("random")):
        with attach(model, plan), torch.no_grad(), FlopCounter() as counter:
            model(**inputs, logits_to_keep=1)
        counted.append(counter.total)
    assert counted[0] == counted[1] and expected["selector"] == 0
    assert sum(expected.values()) < sum(dense.values())


def test_images_have_no_frames_to_compare() -> None:
    model = tiny.model("qwen2_vl", layers=LAYERS)
    with attach(model, schedule("frame_change")), pytest.raises(UnsupportedModelError, match="frames of a video"):
        model(**tiny.inputs("qwen2_vl"))


def test_what_does_not_fit_a_frame_goes_to_the_others() -> None:
    assert allot(6, [1.0, 1.0, 1.0], [4, 4, 4]) == [2, 2, 2]
    assert allot(9, [100.0, 1.0, 1.0], [4, 4, 4]) == [4, 3, 2]
    assert allot(50, [1.0, 0.0], [4, 4]) == [4, 4]
