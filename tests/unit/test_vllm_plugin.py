"""The vLLM plugin without vLLM: what it refuses, how prompts get shorter, and whose picture a picture is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from calibrate.inputs.bundled import reference_path
from planner.errors import PlanError, PlanMismatchError
from planner.plan import Decision, Plan
from planner.policies import parse
from planner.profile import ModelIdentity, Profile
from planner.schedule import Count, Select, Threshold
from planner.spec import ModelSpec
from planner.vllm_plugin import VARIABLE, architectures, register
from planner.vllm_plugin.axes import PlannedAxes
from planner.vllm_plugin.carried import carried
from planner.vllm_plugin.processing import PlannedInfo, PlannedProcessor, planned_factories
from planner.vllm_plugin.prompts import shortened
from tests import tiny

PACKED = "diverse:keep=0.25,positions=packed"


@pytest.fixture(scope="module")
def identity() -> ModelIdentity:
    return Profile.load(reference_path() / "profile.json").model


def written(folder: Path, identity: ModelIdentity, policy: str, family: str = "", **select: Any) -> str:
    """A plan in a file: for another family, or with another selection, than its policy's."""
    schedule = parse(policy).schedule(ModelSpec.from_config(identity.config))
    if select:
        schedule = schedule.model_copy(update={"entry": Select(**select)})
    model = identity.model_copy(update={"family": family or identity.family})
    path = folder / "plan.json"
    Plan(model=model, decision=Decision(policy=policy, schedule=schedule)).sealed().save(path)
    carried.cache_clear()
    return str(path)


@pytest.mark.parametrize(
    ("policy", "family", "named"),
    [
        ("visipruner:filter=3,keep=20,exit=7", "", "inside the decoder"),
        (f"{PACKED}+visipruner:filter=3,keep=20,exit=7", "", "inside the decoder"),
        ("cdpruner:keep=0.2", "", "depends on the question"),
        ("random", "", "inside the decoder"),
        ("evs:keep=0.5", "", "--video-pruning-method evs"),
        ("blind", "", "leave the picture out"),
        (PACKED, "gemma3", "gemma3 is not covered (llava, llava_next"),
        (PACKED, "qwen2_vl", "nothing can be packed"),
        ("prellm:keep=0.5", "qwen2_vl", "not followed"),
        ("resize:keep=0.5", "qwen2_vl", "--mm-processor-kwargs"),
    ],
)
def test_what_vllm_cannot_carry_is_refused_by_name(
    tmp_path: Path, identity: ModelIdentity, policy: str, family: str, named: str
) -> None:
    with pytest.raises(PlanError) as refused:
        carried(written(tmp_path, identity, policy, family))
    assert named in str(refused.value)
    assert policy in str(refused.value)


def test_a_number_that_is_not_known_beforehand_is_refused(tmp_path: Path, identity: ModelIdentity) -> None:
    keep = Threshold(threshold=1.0, at_most=20)
    with pytest.raises(PlanError, match="known after encoding"):
        carried(written(tmp_path, identity, PACKED, rank_by="encoder_norm", keep=keep))
    with pytest.raises(PlanError, match="no token stays"):
        carried(written(tmp_path, identity, PACKED, rank_by="encoder_norm", keep=Count(count=0)))


def test_differences_from_what_was_measured_are_named(tmp_path: Path, identity: ModelIdentity) -> None:
    def differences(policy: str, family: str = "") -> str:
        found = carried(written(tmp_path, identity, policy, family))
        assert found is not None
        return " ".join(found.differences)

    assert "original positions" in differences("diverse:keep=0.25")
    assert "several pictures" in differences("diverse:keep=0.25")
    assert differences(f"{PACKED},per=picture") == ""
    assert differences("diverse:keep=0.25,per=picture", "qwen3_vl") == ""
    assert differences("prellm:keep=0.25,rank_by=random,per=picture,positions=packed") == ""
    assert carried(written(tmp_path, identity, "dense")) is None


def test_another_model_is_refused(tmp_path: Path, identity: ModelIdentity) -> None:
    plan = carried(written(tmp_path, identity, PACKED))
    assert plan is not None
    with pytest.raises(PlanMismatchError):
        plan.check(tiny.config("llava"))


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # an import would fail
    register()


def test_with_it_every_covered_class_is_exchanged(
    tmp_path: Path, identity: ModelIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, str] = {}
    engine = ModuleType("vllm")
    engine.ModelRegistry = SimpleNamespace(register_model=found.__setitem__)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", engine)
    monkeypatch.setenv(VARIABLE, written(tmp_path, identity, PACKED))
    register()
    assert set(found) == set(architectures.ARCHITECTURES)
    assert found["LlavaForConditionalGeneration"] == "planner.vllm_plugin.models:LlavaForConditionalGeneration"
    monkeypatch.setenv(VARIABLE, written(tmp_path, identity, "fastv:k=2,ratio=0.5"))
    with pytest.raises(PlanError, match="inside the decoder"):
        register()


def test_the_first_placeholders_of_every_piece_stay() -> None:
    assert shortened([9, 9, 9, 9], [True] * 4, [(4, 1)]) == [9]
    # Two tiles between marks 1, 2 and 3, two tokens of three each.
    tokens = [1, 9, 9, 9, 2, 9, 9, 9, 3]
    embeds = [token == 9 for token in tokens]
    assert shortened(tokens, embeds, [(3, 2), (3, 2)]) == [1, 9, 9, 2, 9, 9, 3]
    assert shortened(tokens, embeds, [(6, 6)]) == tokens
    with pytest.raises(PlanError, match="per=tile"):
        shortened(tokens, embeds, [(6, 4)])


@dataclass
class Update:
    """As vLLM's, for one token that becomes several."""

    modality: str
    replacement: Any

    def resolve(self, index: int) -> Any:
        return SimpleNamespace(content=self.replacement(index))


@dataclass
class Details:
    full: list[int]
    is_embed: Any = None


class Processor:
    """As vLLM's of a family."""

    def __init__(self, info: Any, dummy_inputs: Any) -> None:
        self.info = info

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        return {"image": list(inputs)}

    def _get_prompt_updates(self, mm_items: Any, options: Any, processed: Any) -> list[Update]:
        return [Update("image", lambda index: Details([9] * 144))]


@dataclass(frozen=True)
class Factories:
    info: Any
    processor: Any


@pytest.fixture
def processor_of(tmp_path: Path, identity: ModelIdentity, monkeypatch: pytest.MonkeyPatch) -> Any:
    parse_module = ModuleType("vllm.multimodal.parse")
    parse_module.ImageEmbeddingItems = list  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.multimodal"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.multimodal.parse", parse_module)
    config = SimpleNamespace(to_dict=lambda: identity.config)
    info = SimpleNamespace(ctx=SimpleNamespace(model_config=SimpleNamespace(hf_config=config)))

    def make(policy: str) -> Any:
        plan = carried(written(tmp_path, identity, policy))
        assert plan is not None
        factories = planned_factories(Factories(lambda context: info, Processor), plan)
        return factories.processor(info, None)

    return make


def test_a_prompt_has_as_many_placeholders_as_the_plan_keeps(processor_of: Any) -> None:
    processor = processor_of(PACKED)
    assert isinstance(processor, PlannedProcessor) and isinstance(processor, Processor)
    (update,) = processor._get_prompt_updates({"image": object()}, {}, {"image": [{}]})
    assert update.replacement(0).full == [9] * 36
    # Embeddings that a client sends are used as they are.
    (update,) = processor._get_prompt_updates({"image": []}, {}, {"image": [{}]})
    assert update.replacement(0).full == [9] * 144


def test_a_picture_under_another_plan_is_another_picture(processor_of: Any) -> None:
    names = [processor_of(policy)._get_mm_hashes(["a", "b"])["image"] for policy in (PACKED, "dart:keep=0.5")]
    assert len({*names[0], *names[1]}) == 4
    assert names[0] == processor_of(PACKED)._get_mm_hashes(["a", "b"])["image"]


class Info:
    """As vLLM's of a family that takes videos too."""

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        return {"image": None, "video": None}


def test_a_budget_for_a_prompt_takes_one_picture_and_none_takes_videos(tmp_path: Path, identity: ModelIdentity) -> None:
    for policy, limit in ((PACKED, 1), (f"{PACKED},per=picture", None)):
        plan = carried(written(tmp_path, identity, policy))
        info = type("Planned", (PlannedInfo, Info), {"plan": plan})()
        assert info.get_supported_mm_limits() == {"image": limit, "video": 0}


@dataclass
class Field:
    data: torch.Tensor


@dataclass
class Feature:
    mm_position: Any
    data: dict[str, Field]


class Decoder:
    """As vLLM's of a family: gives back the positions that it gets."""

    def embed_input_ids(self, input_ids: Any, embeddings: Any, *, is_multimodal: Any) -> None:
        assert {one.shape[1] for one in embeddings} == {5}

    def forward(self, input_ids: Any, positions: torch.Tensor, *_: Any) -> torch.Tensor:
        return positions


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_tokens_that_stay_keep_their_place_on_every_axis(family: str) -> None:
    """Beside transformers' own positions of the whole prompt."""
    model, inputs = tiny.model(family), tiny.inputs(family, batch=1, images=2)
    ids, grids = inputs["input_ids"], inputs["image_grid_thw"]
    whole = positions_of(model, inputs)[:, 0]
    token, merge = model.config.image_token_id, model.config.vision_config.spatial_merge_size
    image = (ids[0] == token).nonzero()[:, 0]
    kept = image[::3]
    stays = torch.ones_like(ids[0], dtype=torch.bool)
    stays[image] = False
    stays[kept] = True
    short = ids[0, stays]

    planned = object.__new__(type("Planned", (PlannedAxes, Decoder), {}))
    planned._merge, planned._moved = merge, None
    runs, encoded, first = [], [], 0
    for grid in grids:
        tokens = int(grid.prod()) // merge**2
        own = [row for row in range(tokens) if bool(stays[image[first + row]])]
        places = torch.cartesian_prod(*(torch.arange(size) for size in planned._grid(grid)))[own]
        encoded.append(torch.cat([torch.zeros(len(own), 5), places], dim=1))
        offset = int(stays[: image[first + own[0]]].sum())
        runs.append(Feature(SimpleNamespace(offset=offset, length=len(own)), {"image_grid_thw": Field(grid)}))
        first += tokens
    before, ahead = planned.get_mrope_input_positions(short.tolist(), runs)
    text = short != token
    assert torch.equal(before[:, text], whole[:, stays][:, text])
    assert ahead == int(whole.max()) + 1 - len(short)

    def moved(start: int, end: int) -> torch.Tensor:
        """Positions that the decoder gets for a part of the prompt."""
        part = slice(start, end)
        count, skipped = int((~text[part]).sum()), int((~text[:start]).sum())
        sent = [torch.cat(encoded)[skipped : skipped + count]] if count else []
        planned.embed_input_ids(short[part], sent, is_multimodal=~text[part])
        return planned.forward(None, before[:, part].clone())  # type: ignore[no-any-return]

    assert torch.equal(moved(0, len(short)), whole[:, stays])
    # In two parts, of which the second begins within the second picture.
    cut = runs[1].mm_position.offset + 1
    assert torch.equal(torch.cat([moved(0, cut), moved(cut, len(short))], dim=1), whole[:, stays])
    # What comes next has no pictures, and is where vLLM puts it.
    assert torch.equal(planned.forward(None, before.clone()), before)


def positions_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """``[3, B, n]`` that transformers gives the text tower."""
    found = []
    tower = model.model.language_model
    hook = tower.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(kwargs["position_ids"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    return found[0][-3:]  # type: ignore[no-any-return]
