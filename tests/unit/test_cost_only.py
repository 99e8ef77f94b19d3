"""What can be costed and not executed: merging inside the vision encoder, budgets of tiles, merging between decoder
layers, dropping generated tokens. Every figure is derived from the shapes of LLaVA-1.5-7B, by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import Cost, cost, latency
from planner.cost.hardware import hardware
from planner.engines.carry import carried
from planner.engines.facts import engine, engine_names
from planner.errors import InputError, PlannerError, ScheduleError, UnsupportedModelError
from planner.policies import combine, parse
from planner.schedule import Count, Fraction, Schedule, Select, Stage, TowerMerge, dense
from planner.spec import ModelSpec
from planner.workload import Workload

SPEC = ModelSpec.from_config("llava-1.5-7b")
PROMPT = Workload(system_tokens=10, visual_tokens=576, text_tokens=64)
#: CLIP-L/336: 24 blocks of width 1024, heads of 64, 576 patches and a class token; the projector reads block 23.
WIDTH, HEAD = 1024, 64
DECODER = (Stage(first=0, last=32),)


def priced(schedule: Schedule | str, workload: Workload = PROMPT, spec: ModelSpec = SPEC) -> Cost:
    made = parse(schedule).schedule(spec, workload) if isinstance(schedule, str) else schedule
    return cost(spec, workload, made)


def block(count: int, left: int) -> int:
    """Multiply-adds of a block that merges `count` tokens into `left`."""
    pairs = -(-count // 2) * (count // 2) * HEAD if left < count else 0
    return 4 * count * WIDTH**2 + 2 * count**2 * WIDTH + pairs + 2 * left * WIDTH * 4 * WIDTH


def test_merging_in_two_blocks() -> None:
    """Block 0 merges 100 of 577 tokens, block 1 none, block 2 77 more: 399 patches reach projector and decoder."""
    found = priced(Schedule(stages=DECODER, tower=TowerMerge(merged=(100, 0, 77))))
    patches = 576 * 14 * 14 * 3 * WIDTH
    blocks = block(577, 477) + block(477, 477) + block(477, 400) + 21 * block(400, 400)
    assert found.prefill["vision"] == 2 * (patches + blocks)
    assert found.prefill["projector"] == 2 * 399 * (1024 * 4096 + 4096 * 4096)
    assert found.prefill["ffn"] == 2 * 32 * (399 + 74) * 3 * 4096 * 11008
    assert found.kv_cache_bytes == (399 + 74) * 524_288
    assert set(found.visual_tokens_per_layer) == {399}


def test_what_blocks_behind_the_read_one_merge_reaches_no_decoder() -> None:
    last, none = (priced(Schedule(stages=DECODER, tower=TowerMerge(merged=(0,) * 23 + (pairs,)))) for pairs in (50, 0))
    assert none.prefill == priced("dense").prefill
    assert none.prefill["vision"] - last.prefill["vision"] == 2 * (block(577, 577) - block(577, 527))
    assert {**last.prefill, "vision": 0} == {**none.prefill, "vision": 0}


def test_several_pictures_merge_each_its_own() -> None:
    two = Workload(system_tokens=10, visual_tokens=1152, text_tokens=64, images=((336, 336), (336, 336)))
    one = priced("tome:keep=100")
    assert priced("tome:keep=100", two).prefill["vision"] == 2 * one.prefill["vision"]
    assert set(priced("tome:keep=100", two).visual_tokens_per_layer) == {200}


@pytest.mark.parametrize(("keep", "left"), [("192", 192), ("0.25", 144), ("575", 575)])
def test_tome_spreads_over_the_blocks_that_are_read(keep: str, left: int) -> None:
    merge = parse(f"tome:keep={keep}").schedule(SPEC, PROMPT).tower
    assert merge is not None and len(merge.merged) == 23
    assert sum(merge.merged) == 576 - left and max(merge.merged) - min(merge.merged) <= 1


def test_tome_r() -> None:
    """The paper's r in all 24 blocks, of which the projector reads the output of 23."""
    assert priced("tome:r=16").visual_tokens_per_layer[0] == 576 - 23 * 16
    merge = parse("tome:r=100").schedule(SPEC, PROMPT).tower
    assert merge is not None and merge.merged[:6] == (100, 100, 100, 100, 88, 44)


def test_a_serving_engine_saves_what_the_encoder_merges() -> None:
    row = hardware("h100-sxm").model_copy(update={"engine": "vllm"})
    merged, whole = (latency(priced(name), row).prefill_ms_by_class["vision"] for name in ("tome:keep=64", "dense"))
    assert 0.5 * whole < merged < 0.7 * whole


def test_a_smaller_picture_saves_the_encoder_s_time_in_every_engine() -> None:
    spec = ModelSpec.from_config("qwen2.5-vl-7b")
    prompt = Workload(visual_tokens=1024, images=((896, 896),))
    for name in ("hf", "vllm", "ideal"):
        row = hardware("h100-sxm").model_copy(update={"engine": name})
        small, whole = (latency(priced(policy, prompt, spec), row) for policy in ("resize:keep=0.1", "dense"))
        assert small.prefill_ms_by_class["vision"] < 0.3 * whole.prefill_ms_by_class["vision"], name


@pytest.mark.parametrize(
    ("model", "policy", "refusal"),
    [
        ("qwen2.5-vl-7b", "tome", "not cut into tiles of one size"),
        ("llava-next-7b", "tome", "every patch in its place"),
        ("internvl2.5-8b", "tome", "every patch in its place"),
    ],
)
def test_models_that_need_every_patch_are_refused_by_name(model: str, policy: str, refusal: str) -> None:
    spec = ModelSpec.from_config(model)
    with pytest.raises(UnsupportedModelError, match=refusal) as caught:
        priced(policy, Workload(visual_tokens=256), spec)
    assert spec.family in str(caught.value)


def test_blocks_merge_what_they_have() -> None:
    with pytest.raises(ScheduleError, match="block 1 of the vision encoder cannot merge 150 pairs"):
        priced(Schedule(stages=DECODER, tower=TowerMerge(merged=(288, 150))))
    with pytest.raises(ScheduleError, match="25 blocks"):
        priced(Schedule(stages=DECODER, tower=TowerMerge(merged=(1,) * 25)))
    with pytest.raises(InputError, match="multiple of 576"):
        priced("tome:r=1", Workload(visual_tokens=600))


def test_hired_reads_the_class_token_in_two_layers() -> None:
    found, once = priced("hired:keep=115"), priced("prellm:keep=115")
    assert once.prefill["selector"] == 2 * 577 * WIDTH
    assert found.prefill["selector"] == 2 * once.prefill["selector"]
    assert {**found.prefill, "selector": 0} == {**once.prefill, "selector": 0}


def test_merging_between_layers_compares_every_dropped_token_with_the_kept_ones() -> None:
    """200 of 576 stay after layer 1; 576 x 200 pairs of 4,096 features beside the score."""

    def after(merge: str) -> Cost:
        select = Select.model_validate({"rank_by": "last_attention", "keep": Count(count=200), "merge": merge})
        return priced(Schedule(stages=(Stage(first=0, last=2, selects=(select,)), Stage(first=2, last=32))))

    none, mean, nearest = (after(merge) for merge in ("none", "mean", "nearest"))
    assert mean.prefill == none.prefill
    assert nearest.prefill["selector"] - none.prefill["selector"] == 2 * 576 * 200 * 4096
    assert nearest.per_layer["selector"][1] == nearest.prefill["selector"]
    with pytest.raises(ValueError, match="only visual tokens are merged"):
        text = Select(rank_by="random", keep=Count(count=1), of="context", protect=1, merge="mean")
        Stage(first=0, last=1, selects=(text,))


def test_half_of_the_answer_stays_in_the_cache() -> None:
    """From layer 2 on; 50 of the first 100 tokens, and the prompt of 650 whole."""
    found, whole = priced("generated:keep=0.5,first=2"), priced("dense")
    assert found.prefill == whole.prefill and found.kv_cache_bytes == whole.kv_cache_bytes
    held = 2 * (650 + 100) + 30 * (650 + 50)
    assert found.kv_cache_bytes_after(100) == held * 524_288 // 32
    # A step's new row sees itself too: two products of 4,096 with each key.
    saved = whole.decode_flops_at(100) - found.decode_flops_at(100)
    assert saved == 2 * 30 * 50 * 2 * 4096


def test_the_last_tokens_of_the_answer_stay() -> None:
    found = priced("generated:keep=16")
    assert [found.kv_cache_bytes_after(n) // 524_288 - 650 for n in (0, 1, 16, 17, 1000)] == [0, 1, 16, 16, 16]
    assert priced("generated:keep=0").kv_cache_bytes_after(9) == 650 * 524_288


def test_a_window_holds_its_share_of_a_part_of_the_answer() -> None:
    """Layers that see 128 positions hold 64 of the last 127 generated ones, and none of the prompt."""
    text = {"model_type": "mistral", "num_hidden_layers": 1, "sliding_window": 128, "head_dim": 4}
    text |= {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 8}
    spec = ModelSpec.from_config({**text, "vocab_size": 16})
    found = cost(spec, Workload(visual_tokens=0, text_tokens=50), parse("generated:keep=0.5").schedule(spec))
    assert found.kv_cache_bytes_after(500) == 64 * 2 * 4 * 2


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.1, 0.5, 0.9, 3, 30]))
@settings(deadline=None, max_examples=20)
def test_keeping_less_of_an_answer_never_costs_more(step: int, more: int, keep: float) -> None:
    found, whole = priced(f"generated:keep={keep:g}"), priced("dense")
    assert found.kv_cache_bytes_after(step) <= found.kv_cache_bytes_after(step + more) + 0
    assert found.kv_cache_bytes_after(step) <= whole.kv_cache_bytes_after(step)
    assert found.decode_flops_at(step) <= whole.decode_flops_at(step)


def test_evict_keeps_the_prefill_and_shrinks_the_cache() -> None:
    found, whole = priced("evict:keep=64"), priced("dense")
    # The last row's query with 650 keys of 32 heads of 128.
    assert found.prefill["selector"] == 2 * 32 * 128 * 650
    assert {**found.prefill, "selector": 0} == whole.prefill
    assert found.kv_cache_bytes == (64 + 74) * 524_288
    assert priced("evict:keep=1").kv_cache_bytes == whole.kv_cache_bytes
    assert priced("evict:keep=0").kv_cache_bytes == 74 * 524_288
    assert not parse("evict").schedule(SPEC).cost_only


def test_evicting_takes_no_time_off_the_prefill() -> None:
    row = hardware("a6000")
    found, whole = (latency(priced(text), row) for text in ("evict:keep=64", "dense"))
    assert found.prefill_ms_by_class["attention_scores"] == whole.prefill_ms_by_class["attention_scores"]
    assert found.prefill_ms > whole.prefill_ms
    assert found.decode_ms_by_class["attention_scores"] < 0.25 * whole.decode_ms_by_class["attention_scores"]


@pytest.mark.parametrize("text", ["tome", "hired", "generated", "tome+generated"])
def test_engines_refuse_what_has_a_cost_alone(text: str) -> None:
    schedule = parse(text).schedule(SPEC, PROMPT)
    assert schedule.cost_only and not schedule.empty
    for name in engine_names():
        found = carried(engine(name), schedule, SPEC, 576)
        assert found.level == "no" and "costed alone" in found.why[0]


def test_only_one_selects_ahead_of_the_decoder() -> None:
    tome, prellm = (parse(text).schedule(SPEC, PROMPT) for text in ("tome", "prellm"))
    for pair in ((tome, prellm), (prellm, tome), (tome, tome)):
        with pytest.raises(InputError, match="two policies select before"):
            combine(*pair)
    both = combine(tome, parse("fastv").schedule(SPEC, PROMPT))
    assert both.tower == tome.tower and both.stages[0].selects
    with pytest.raises(PlannerError, match="drop generated tokens in layers"):
        parse("generated+generated:keep=3").schedule(SPEC, PROMPT)
    assert parse("generated+fastv").schedule(SPEC, PROMPT).stages[1].cache_generated == Fraction(fraction=0.5)


def test_schedules_without_them_read_and_write_as_before() -> None:
    """Documents made before these fields keep their digests."""
    assert json.loads(dense(2).model_dump_json()) == {
        "stages": [
            {
                "first": 0, "last": 2, "visual_attention": "full", "text_to_visual": "full", "cache_visual": "all",
                "selects": [], "redistribute": None,
            }
        ],
        "entry": None,
        "positions": "original",
    }  # fmt: skip
    made = parse("tome+generated").schedule(SPEC, PROMPT)
    assert Schedule.model_validate_json(made.model_dump_json()) == made
