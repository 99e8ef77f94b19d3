"""What users of other tools ran into, each named by its public thread, does not happen here."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from planner.errors import UnsupportedModelError
from planner.policies import parse
from planner.runtime import ImageCache, attach
from planner.runtime.model.adapters import find_parts
from planner.schedule import Schedule, Stage
from planner.spec import ModelSpec
from tests import tiny
from tests.float64 import float64_throughout
from tests.forced import continuation, logits
from tests.reference import run
from tests.schedules import LAYERS, SCHEDULES, after_layer, select
from tests.tiny.configs import IMAGE, VIDEO, VISION_END, VISION_START

TOLERANCE = 1e-10


def entry(keep: int | float, **options: Any) -> Schedule:
    """The most different tokens before layer 0, whatever the question."""
    positions = options.pop("positions", "original")
    chosen = select("max_min_distance", keep, **options)
    return Schedule(stages=(Stage(first=0, last=LAYERS),), entry=chosen, positions=positions)


def words(count: int, seed: int) -> list[int]:
    return torch.randint(5, 110, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def last_logits(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad(), float64_throughout():
        return model(**inputs, logits_to_keep=1, **options).logits[:, -1]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("layer", [LAYERS - 3, LAYERS - 2])
def test_rows_dropped_at_a_late_layer_then_twenty_tokens(family: str, layer: int) -> None:
    """vllm#25756: tokens dropped at a late layer gave garbage after the first token, as the layers' KV caches then have
    other lengths than one slot mapping says."""
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, batch=2, left_pad=2)
    schedule, generated = after_layer(layer, select("last_attention", 4)), continuation(2, 20)
    expected = run(model, inputs, schedule, generated)
    with attach(model, schedule):
        found = logits(model, inputs, generated)
    assert len(found) == 21
    for ours, theirs in zip(found, [expected.prefill, *expected.steps], strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE


def test_ten_questions_over_two_images_with_the_cache() -> None:
    """sglang PR 11203: repeated questions about images that are cached clashed."""
    model, cache = tiny.model("llava", layers=LAYERS), ImageCache()
    pictures = [tiny.inputs("llava", seed=seed)["pixel_values"] for seed in (1, 2)]

    def ask(number: int) -> dict[str, Tensor]:
        shown = [[0], [1], [0, 1], [1, 0], [1, 1]][number % 5]
        ids = words(3, number)
        for picture in shown:
            ids += [*[IMAGE] * 16, *words(2, 10 * number + picture)]
        ids += words(3 + number % 4, 100 + number)
        pixels = torch.cat([pictures[picture] for picture in shown])
        return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)), "pixel_values": pixels}

    schedule = SCHEDULES["visipruner"]
    with attach(model, schedule):
        expected = [last_logits(model, ask(number)) for number in range(10)]
    with attach(model, schedule, image_cache=cache):
        found = [last_logits(model, ask(number)) for number in range(10)]
    assert (torch.stack(found) - torch.stack(expected)).abs().max() < TOLERANCE
    assert len(cache) == 2 and cache.misses == 2


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("positions", ["original", "packed"])
def test_the_third_turn_of_text_under_pruning(family: str, positions: str) -> None:
    """openvino.genai PR 3499: the third turn, without an image, was only tested for giving some text. Here three turns
    equal one prompt of all their text: what is kept does not depend on the question."""
    if (family, positions) == ("qwen2_vl", "packed"):
        pytest.skip("tokens on several axes are not packed")
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family)
    turns = [torch.tensor([words(4, seed)]) for seed in (7, 8)]
    whole = dict(inputs, input_ids=torch.cat([inputs["input_ids"], *turns], dim=1))
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            more = torch.full((1, 8), int(name == "attention_mask"), dtype=inputs[name].dtype)
            whole[name] = torch.cat([inputs[name], more], dim=1)
    with attach(model, entry(5, positions=positions)) as handle, torch.no_grad(), float64_throughout():
        cache = DynamicCache(config=model.config.get_text_config())
        model(**inputs, past_key_values=cache, use_cache=True)
        in_turns = [model(input_ids=turn, past_key_values=cache).logits for turn in turns][-1]
        kept = handle.kept
        at_once = model(**whole).logits[:, -4:]
        assert handle.kept == kept
    assert (in_turns - at_once).abs().max() < TOLERANCE


def test_a_plan_that_never_triggers_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """V2Drop#2, VLA-Pruner#8: a pruner that pruned nothing, and nobody could tell."""
    model = tiny.model("llava", layers=LAYERS)
    for schedule in (entry(1000), after_layer(1, select("last_attention", 16))):
        caplog.clear()
        with attach(model, schedule) as handle, caplog.at_level(logging.WARNING, "planner"):
            for seed in range(3):
                last_logits(model, tiny.inputs("llava", seed=seed))
            assert handle.report is not None and handle.report.visual == ((16,),) * LAYERS
        told = [record.getMessage() for record in caplog.records]
        nothing = "the plan dropped nothing of a prompt with 16 visual and 10 text tokens: it keeps as many, or more"
        assert told == [nothing]
    for schedule in (entry(15), after_layer(1, select("last_attention", 15)), SCHEDULES["dense"], SCHEDULES["var"]):
        caplog.clear()
        with attach(model, schedule), caplog.at_level(logging.WARNING, "planner"):
            last_logits(model, tiny.inputs("llava"))
        assert not caplog.records


def next_model() -> Any:
    """A tiny LLaVA-NeXT with the tiles of the real one: 336 pixels, 24 x 24 patches."""
    config = tiny.config("llava_next", 2)
    config.vision_config.image_size, config.vision_config.patch_size = 336, 14
    config.image_grid_pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    model = transformers.LlavaNextForConditionalGeneration._from_config(config)
    tiny.randomise(model, 0)
    return model.eval()


@pytest.mark.parametrize(("per", "base", "rest"), [("prompt", None, None), ("picture", None, None), ("tile", 288, 288)])
def test_keep_288_of_a_picture_of_672_by_336(per: str, base: int | None, rest: int | None) -> None:
    """SelfEvolvingAgent#6 and FastVID#2: does a budget mean the picture or each of its tiles, and what of the tokens
    that end a row? The picture has 576 tokens of its base view and 24 rows of 48 with one more at each end; base view
    and the rest are the two tiles. Row ends are visual tokens as any other: they count, and they can go."""
    model = next_model()
    tokens, row_ends = 576 + 24 * 49, {576 + 49 * row + 48 for row in range(24)}
    ids = torch.tensor([[*words(3, 1), *[IMAGE] * tokens, *words(5, 2)]])
    pixels = torch.randn(1, 3, 3, 336, 336, generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels,
              "image_sizes": torch.tensor([[336, 672]])}  # fmt: skip
    spec = ModelSpec.from_config(model.config.to_dict())
    for name in ("diverse", "pool"):
        schedule = parse(f"{name}:keep=288,per={per}").schedule(spec)
        with attach(model, schedule) as handle, torch.no_grad():
            model(**inputs)
            kept, report = set(handle.kept[0][0]), handle.report
        assert report is not None and report.visual[0][0] == len(kept) == (288 if base is None else 576)
        if base is not None:
            assert (sum(one < 576 for one in kept), sum(one >= 576 for one in kept)) == (base, rest)
        # Row ends are all alike: of tokens as different as can be there is one. Cells have none, they cover patches.
        assert len(kept & row_ends) == (name == "diverse")


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "smolvlm"])
@pytest.mark.parametrize("name", ["fastv", "visipruner", "entry", "entry-picture"])
def test_three_images_with_text_between(family: str, name: str) -> None:
    """kvpress#27, VisionZip#26: several images with text between them."""
    entries = {"entry": entry(7), "entry-picture": entry(3, per="picture")}
    schedule = entries[name] if name in entries else SCHEDULES[name]
    model, inputs = tiny.model(family, layers=LAYERS), tiny.inputs(family, images=3)
    visual = inputs["input_ids"][0] == IMAGE
    assert int((visual[1:] & ~visual[:-1]).sum()) == 3, "text stands between"
    generated = continuation(1)
    expected = run(model, inputs, schedule, generated)
    with attach(model, schedule) as handle:
        found = logits(model, inputs, generated)
        assert name != "entry-picture" or len(handle.kept[0][0]) == 9
    for ours, theirs in zip(found, [expected.prefill, *expected.steps], strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE


def both(family: str, video_first: bool) -> dict[str, Tensor]:
    """A prompt with a video of two times 2 x 2 tokens and an image of 2 x 4, in one order or the other."""
    generator = torch.Generator().manual_seed(5)
    video = [VISION_START, *[VIDEO] * 8, VISION_END]
    image = [VISION_START, *[IMAGE] * 8, VISION_END]
    first, second = (video, image) if video_first else (image, video)
    ids = torch.tensor([[*words(3, 1), *first, *words(2, 2), *second, *words(6, 3)]])
    found = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(32, 96, generator=generator, dtype=torch.float64),
        "image_grid_thw": torch.tensor([[1, 4, 8]]),
        "pixel_values_videos": torch.randn(32, 96, generator=generator, dtype=torch.float64),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }
    if "mm_token_type_ids" in inspect.signature(tiny.model(family, layers=LAYERS).forward).parameters:
        found["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return found


def without(model: Any, inputs: dict[str, Tensor], dropped: Tensor) -> Tensor:
    """Logits of the last row when the decoder gets the other rows alone, each at its own position."""
    tower, seen = find_parts(model).tower, {}

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    hook = tower.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad(), float64_throughout():
        model(**inputs)
        hook.remove()
        rows = {
            "inputs_embeds": seen["inputs_embeds"][:, ~dropped],
            "position_ids": seen["position_ids"][..., ~dropped],
        }
        return model.lm_head(tower(**rows, use_cache=False)[0][:, -1])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("video_first", [True, False])
@pytest.mark.parametrize("rank_by", ["max_min_distance", "encoder_norm"])
def test_a_video_and_an_image_in_both_orders(family: str, video_first: bool, rank_by: Any) -> None:
    """vllm#27859: a video before an image broke when tokens of the video were pruned; the other order worked."""
    model, inputs = tiny.model(family, layers=LAYERS), both(family, video_first)
    schedule = Schedule(stages=(Stage(first=0, last=LAYERS),), entry=select(rank_by, 3, per="picture"))
    visual = torch.isin(inputs["input_ids"][0], torch.tensor([IMAGE, VIDEO]))
    with attach(model, schedule) as handle:
        found = last_logits(model, inputs)
        kept = handle.kept[0][0]
    of_first = sum(one < 8 for one in kept)
    assert (of_first, len(kept) - of_first) == (3, 3), "each has its budget"
    dropped = visual.clone()
    dropped[visual.nonzero()[kept, 0]] = False
    assert (found - without(model, inputs, dropped)).abs().max() < TOLERANCE


@pytest.mark.parametrize("video_first", [True, False])
def test_a_policy_for_videos_and_an_image_in_either_order(video_first: bool) -> None:
    """vllm#27859, where that broke in one order with an error from inside. An image in the prompt's one budget counts
    as a first frame, which stays whole; with a budget of its own it has no frames to compare, which is refused."""
    model, inputs = tiny.model("qwen2_5_vl", layers=LAYERS), both("qwen2_5_vl", video_first)
    stages = (Stage(first=0, last=LAYERS),)
    with attach(model, Schedule(stages=stages, entry=select("frame_change", 12))) as handle:
        last_logits(model, inputs)
        image_begins = 8 if video_first else 0
        video_begins = 8 - image_begins
        assert handle.kept[0][0] == sorted(
            [*range(image_begins, image_begins + 8), *range(video_begins, video_begins + 4)]
        )
    each = Schedule(stages=stages, entry=select("frame_change", 3, per="picture"))
    with attach(model, each), pytest.raises(UnsupportedModelError, match="these inputs bring an image"):
        last_logits(model, inputs)
