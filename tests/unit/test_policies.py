"""Policies as schedules: the staircase each makes, its spelling, and what it refuses."""

from __future__ import annotations

import pytest

from planner.cost import cost, latency
from planner.cost.hardware import hardware
from planner.errors import InputError
from planner.policies import Composition, Policy, VisiPruner, combine, names, parse
from planner.policies.base import REGISTRY
from planner.schedule import Count, Fraction, Schedule, Select, Stage
from planner.spec import ModelSpec
from planner.workload import Workload

SPEC = ModelSpec.from_config("llava-1.5-7b")
WORKLOAD = Workload(visual_tokens=576)
NOTHING = Select(rank_by="none", keep=Count(count=0))


def made(text: str) -> Schedule:
    return parse(text).schedule(SPEC, WORKLOAD)


def test_names() -> None:
    assert names() == (
        "blind", "cdpruner", "context", "dart", "dense", "diverse", "evict", "evs", "fastv", "fitprune", "generated",
        "hired", "pool", "prellm", "pyramiddrop", "random", "resize", "shortv", "sparsevlm", "tome", "var", "vidcom2",
        "visipruner", "vispruner", "vtw",
    )  # fmt: skip
    assert all(REGISTRY[name].summary for name in names())


def test_dense_changes_nothing() -> None:
    assert made("dense").empty


def test_fastv() -> None:
    select = Select(rank_by="last_attention", keep=Fraction(fraction=0.25))
    assert made("fastv:k=3,ratio=0.75") == Schedule(
        stages=(Stage(first=0, last=3, selects=(select,)), Stage(first=3, last=32))
    )


@pytest.mark.parametrize(
    ("rank_by", "score"),
    [("detrended", "last_attention_detrended"), ("text", "text_attention"), ("visual", "visual_attention")],
)
def test_others_attend_in_fastv_and_visipruner(rank_by: str, score: str) -> None:
    for text in ("fastv:k=3,ratio=0.75", "visipruner:filter=3,keep=20,exit=8"):
        assert made(f"{text},rank_by={rank_by}").selects[0].rank_by == score
    with pytest.raises(InputError, match="one query row"):
        parse("visipruner:filter=3,probe=true,rank_by=visual")


def test_random_is_fastv_s_shape_and_seeded() -> None:
    select = Select(rank_by="random", keep=Fraction(fraction=0.1), seed=4)
    assert made("random:k=2,ratio=0.9,seed=4").stages[0].selects == (select,)
    assert made("random:k=0,ratio=0.9,seed=4") == Schedule(entry=select, stages=(Stage(first=0, last=32),))


def test_pyramiddrop_scales_with_depth() -> None:
    assert [stage.last for stage in made("pyramiddrop").stages] == [8, 16, 24, 32]
    qwen = ModelSpec.from_config("qwen2-vl-7b")
    assert [stage.last for stage in parse("pyramiddrop").schedule(qwen).stages] == [7, 14, 21, 28]


@pytest.mark.parametrize(
    ("text", "select"),
    [
        ("dart:keep=0.2", {"rank_by": "pivot_distance"}),
        ("dart:keep=0.2,pivots=3", {"rank_by": "pivot_distance", "pivots": 3}),
        ("diverse:keep=0.2", {"rank_by": "max_min_distance"}),
        ("cdpruner:keep=0.2", {"rank_by": "determinantal"}),
        ("dart:keep=0.2,merge=mean", {"rank_by": "pivot_distance", "merge": "mean"}),
        ("resize:keep=0.2", {"rank_by": "grid", "merge": "pixels"}),
        ("pool:keep=0.2", {"rank_by": "grid", "merge": "cell"}),
        ("pool:keep=0.2,merge=none", {"rank_by": "grid"}),
        ("prellm:keep=0.2,rank_by=norm,merge=nearest", {"rank_by": "encoder_norm", "merge": "nearest"}),
        ("vispruner:keep=0.2,salient=0.7", {"rank_by": "salient_then_distant", "salient": 0.7}),
        ("prellm:keep=0.2,rank_by=norm", {"rank_by": "encoder_norm"}),
    ],
)
def test_policies_before_the_decoder_leave_its_layers_alone(text: str, select: dict[str, object]) -> None:
    wanted = Select.model_validate({"keep": Fraction(fraction=0.2), **select})
    assert made(text) == Schedule(entry=wanted, stages=(Stage(first=0, last=32),))
    assert parse(text).before_decoder(SPEC)
    budgets = [policy.keep for policy in type(parse(text)).candidates(None, SPEC)]  # type: ignore[arg-type, union-attr]
    assert budgets == sorted(budgets, reverse=True) and 0 < budgets[-1] < budgets[0] < 1


@pytest.mark.parametrize(("per", "expected"), [("prompt", 100), ("picture", 200), ("tile", 400)])
def test_a_budget_is_for_the_prompt_each_picture_or_each_tile(per: str, expected: int) -> None:
    """Two pictures of 672 x 672 pixels: each is a base view and tiles that are put together."""
    config = {
        "model_type": "llava_next",
        "image_grid_pinpoints": [[672, 672]],
        "text_config": {"model_type": "llama", "num_hidden_layers": 4},
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
    }
    spec = ModelSpec.from_config(config)
    workload = Workload(visual_tokens=2 * (576 + 48 * 49), images=((672, 672),) * 2)
    found = cost(spec, workload, parse(f"diverse:keep=100,per={per}").schedule(spec))
    assert set(found.visual_tokens_per_layer) == {expected}
    with pytest.raises(InputError, match="visual_tokens is 99"):
        short = workload.model_copy(update={"visual_tokens": 99})
        cost(spec, short, parse("diverse:keep=100,per=tile").schedule(spec))


def test_packed_positions_are_carried_into_compositions() -> None:
    entry = made("dart:keep=0.2,positions=packed")
    assert entry.positions == "packed" and made("dart").positions == "original"
    for text in ("dart:positions=packed+fastv:k=3", "fastv:k=3+dart:positions=packed"):
        assert made(text).positions == "packed"
    with pytest.raises(ValueError, match="needs an entry"):
        Schedule(stages=(Stage(first=0, last=32),), positions="packed")


def test_blind_drops_the_image_before_the_first_layer() -> None:
    assert made("blind").entry == NOTHING
    assert set(cost(SPEC, WORKLOAD, made("blind")).visual_tokens_per_layer) == {0}


def test_shortv_skips_single_layers() -> None:
    found = made("shortv:layers=20/21/30")
    rules = [found.stage_of(layer).visual_attention for layer in range(32)]
    assert [layer for layer, rule in enumerate(rules) if rule == "skip"] == [20, 21, 30]
    assert {found.stage_of(20).text_to_visual, found.stage_of(20).cache_visual} == {"full", "all"}
    hidden = made("shortv:layers=20,text_to_visual=none").stage_of(20)
    assert {hidden.text_to_visual, hidden.cache_visual} == {"none"}
    assert found.image_stream_layers() == 0
    for layers in ("21/20", "32"):
        with pytest.raises(InputError):
            made(f"shortv:layers={layers}")
    dense, skipping = (cost(SPEC, WORKLOAD, made(text)).per_layer for text in ("dense", "shortv:layers=20"))
    times = [
        latency(cost(SPEC, WORKLOAD, made(text)), hardware("l4")).prefill_ms for text in ("dense", "shortv:layers=20")
    ]
    assert times[1] < times[0]
    # Keys and values of the picture are all that the layer computes of it.
    assert dense["ffn"][20] - skipping["ffn"][20] == 2 * 576 * 3 * 4096 * 11008
    assert dense["attention_projections"][20] - skipping["attention_projections"][20] == 2 * 576 * 2 * 4096**2


def test_sparsevlm_budgets() -> None:
    found = made("sparsevlm:layers=2/6/15,keep=66/30/17")
    assert [select.keep for select in found.selects] == [Count(count=n) for n in (66, 30, 17)]
    assert {select.rank_by for select in found.selects} == {"text_raters"}
    assert [stage.last for stage in found.stages] == [2, 6, 15, 32]


def test_sparsevlm_drops_behind_its_published_layers() -> None:
    """Layers 2, 6 and 15, counted from 0, still see what was there before."""
    found = cost(SPEC, WORKLOAD, made("sparsevlm")).visual_tokens_per_layer
    assert [found[layer] for layer in (2, 3, 6, 7, 15, 16)] == [576, 300, 300, 200, 200, 110]


def test_fitprune_meets_its_budget() -> None:
    """FLOPs of visual tokens by the paper's formula, from the counts themselves."""
    d, m = SPEC.hidden_size, SPEC.decoder.intermediate_size

    def flops(n: float) -> float:
        return 4 * n * d * d + 2 * n * n * d + 3 * n * d * m

    for reduction in (0.3, 0.6, 0.9):
        found = made(f"fitprune:reduction={reduction}")
        present = [576.0]
        for layer in range(31):
            stage = found.stage_of(layer)
            last = stage.last == layer + 1
            present.append(float(stage.selects[0].keep.count) if last and stage.selects else present[-1])  # type: ignore[union-attr]
        saved = 1 - sum(map(flops, present)) / (32 * flops(576))
        assert saved == pytest.approx(reduction, abs=0.01)


def test_fitprune_takes_counts() -> None:
    counts = "/".join(str(max(300 - 20 * layer, 0)) for layer in range(31))
    found = made(f"fitprune:counts={counts}")
    assert found.stages[0].selects[0] == Select(rank_by="cross_self_attention", keep=Count(count=300))
    assert found.selects[-1] == NOTHING


def test_prellm() -> None:
    assert made("prellm:keep=0.5").entry == Select(rank_by="encoder_attention", keep=Fraction(fraction=0.5))
    assert made("prellm:keep=64,rank_by=norm").entry == Select(rank_by="encoder_norm", keep=Count(count=64))


def test_var_edits_and_saves_nothing() -> None:
    found = made("var:dims=1415/2533,rho=0.5")
    assert [stage.redistribute is not None for stage in found.stages] == [False, True, False]
    edit = found.stages[1].redistribute
    assert edit is not None and edit.sink_dims == (1415, 2533) and edit.rho == 0.5
    assert not found.selects


def test_composition() -> None:
    policy = parse("prellm:keep=0.5+visipruner:filter=3,keep=20,exit=7")
    assert isinstance(policy, Composition)
    found = policy.schedule(SPEC, WORKLOAD)
    alone = made("visipruner:filter=3,keep=20,exit=7")
    assert found.entry is not None and found.stages == alone.stages


def test_a_combination_cuts_at_both_bounds_and_keeps_the_stricter_rule() -> None:
    found = made("visipruner:filter=8,keep=10,exit=24+var:dims=3")
    assert [stage.last for stage in found.stages] == [2, 8, 9, 24, 31, 32]
    assert [stage.redistribute is not None for stage in found.stages] == [False, False, True, True, True, False]
    assert found.stages[1].visual_attention == "prefix"
    both = combine(made("fastv:k=3,ratio=0.5"), made("context:layers=3,rate=0.3"))
    assert [select.of for select in both.stages[2].selects] == ["visual", "context"]


SPELLED = (
    "dense",
    "fastv:k=3,ratio=0.75",
    "random:k=0,ratio=0.9,seed=2",
    "pyramiddrop:layers=8/16/24,keep=0.5",
    "sparsevlm:layers=2/6/15,keep=66/30/17",
    "prellm:keep=0.5,rank_by=norm",
    "visipruner:filter=3,keep=20,exit=7,merge_first=true,probe=true",
    "context:layers=10,rate=0.3",
    "var:dims=1415/2533",
    "prellm:keep=0.5+visipruner:filter=3,keep=20,exit=7",
)


@pytest.mark.parametrize("text", SPELLED)
def test_spelling_round_trips(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fastvv", "no policy 'fastvv'. Did you mean 'fastv'"),
        ("fastv:kk=3", "no key 'kk'. Did you mean 'k'"),
        ("fastv:k=3,k=4", "'k' is given twice"),
        ("fastv:k", "'k' is not key=value"),
        ("fastv:k=x", "k: .*given 'x'"),
        ("fastv:ratio=1.5", "ratio: "),
        ("fastv:k=-1", "k: "),
        ("fastv:k=0", "no attention to rank by"),
        ("fastv:k=32", "k=32 is outside the model's layers 0 to 31"),
        ("pyramiddrop:layers=8/4", "must increase"),
        ("pyramiddrop:layers=0/4", "before layer 0"),
        ("sparsevlm:layers=2/6,keep=3", "2 layers need as many budgets"),
        ("fitprune:counts=5/4", "2 counts do not fit a model of 32 layers"),
        ("fitprune:reduction=1", "reduction: "),
        ("prellm:keep=0", "keep: "),
        ("prellm:keep=0.5+random:k=0", "two policies select before"),
        ("visipruner:keep=3", "filter: Field required"),
        ("visipruner:filter=32", "filter=32 is outside"),
        ("visipruner:filter=8,exit=9", "leaves no layer to the kept tokens"),
        ("visipruner:filter=0,probe=true", "probe needs a layer before"),
        ("visipruner:filter=4,threshold=0.2", "threshold and at_most go together"),
        ("visipruner:filter=4,relative=true", "belong to a threshold"),
        ("visipruner:filter=4,merge_first=true,visual_attention=full", "merge_first changes layer 0"),
        ("visipruner:filter=4,merge_first=true,visual_attention=prefix", "merge_first changes layer 0"),
        ("visipruner:filter=4,visual_attention=prefix,text_to_visual=merge", "merge needs visual_attention=self"),
        ("visipruner:filter=4,visual_attention=full,text_to_visual=merge", "merge needs visual_attention=self"),
        ("visipruner:filter=8+fastv:k=4", "do not go together: .* hide the image"),
        ("context:layers=40", "outside"),
        ("context:rate=1", "rate: "),
        ("context:rate=automatic", "rate: .*given 'automatic'"),
        ("var", "dims: Field required"),
        ("var:dims=5000", "dims=5000 is outside"),
        ("var:dims=3+var:dims=4", "two policies redistribute"),
        ("", "no policy ''"),
    ],
)  # fmt: skip
def test_refusals(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        made(text)


def test_fitprune_needs_a_workload() -> None:
    with pytest.raises(InputError, match="how many visual tokens"):
        parse("fitprune").schedule(SPEC)


def test_policies_are_frozen() -> None:
    policy = parse("fastv:k=3")
    assert isinstance(policy, Policy)
    with pytest.raises(ValueError, match="frozen"):
        policy.k = 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("dense", True),
        ("prellm:keep=0.5", True),
        ("random:k=0,ratio=0.5", True),
        ("random:k=2,ratio=0.5", False),
        ("fastv", False),
        ("visipruner:filter=8,keep=10", False),
        ("var:dims=3", False),
        ("prellm:keep=0.5+dense", True),
        ("prellm:keep=0.5+fastv", False),
    ],
)
def test_what_happens_before_the_decoder(text: str, before: bool) -> None:
    assert parse(text).before_decoder(SPEC, WORKLOAD) is before
    assert made(text).empty is (text == "dense"), "what is dropped before the decoder is dropped, too"


@pytest.mark.parametrize("name", [name for name in names() if REGISTRY[name].scaled(0.5)])
def test_scaled_forms_drop_the_more_the_nearer_to_one(name: str) -> None:
    shares = [0.0, 0.1, 0.5, 0.9, 1.0]
    forms = [REGISTRY[name].scaled(dropped) for dropped in shares]
    assert len({len(form) for form in forms}) == 1
    for form in zip(*forms, strict=True):
        flops = [cost(SPEC, WORKLOAD, policy.schedule(SPEC, WORKLOAD)).prefill_flops for policy in form]
        assert flops == sorted(flops, reverse=True) and flops[0] > 1.5 * flops[-1]


def test_a_name_belongs_to_one_policy() -> None:
    with pytest.raises(InputError, match=r"calls itself 'fastv', as planner.policies.fastv does already"):

        class Other(Policy):
            name = "fastv"
            summary = "another"

    class Special(VisiPruner):
        """Without a name of its own: no policy more."""

    assert REGISTRY["visipruner"] is VisiPruner and "Special" not in str(REGISTRY)


def test_a_policy_that_is_defined_again_takes_the_place_of_the_first() -> None:
    """As when a notebook's cell runs twice."""

    def define() -> type[Policy]:
        class Again(Policy):
            name = "again"
            summary = "for this test"

        return Again

    try:
        first, second = define(), define()
        assert REGISTRY["again"] is second is not first
    finally:
        del REGISTRY["again"]
