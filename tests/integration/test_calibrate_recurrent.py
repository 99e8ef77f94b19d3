"""A calibration of a model most of whose layers keep a state: what is measured, searched, proven and applied."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from calibrate.deciding.demand import Demand
from calibrate.freeze import freeze
from calibrate.inputs.load import Loaded
from calibrate.pipeline.options import Options
from calibrate.pipeline.run import calibrate_and_plan
from calibrate.probes.masking.executed import Executed, schedule
from calibrate.running import execute
from calibrate.running.execute import able, first_logits
from planner.errors import UnsupportedModelError
from planner.plan import Plan
from planner.policies import parse
from planner.report.page import page
from planner.runtime.model.adapters import find_parts
from planner.schedule import Stage
from planner.spec import ModelSpec
from tests import tiny
from tests.forced import continuation, logits
from tests.integration import calibrate_stub
from tests.integration.calibrate_stub import SIDE, Processor
from tests.integration.test_runtime_equality import TOLERANCE, difference
from tests.reference import run
from tests.schedules import LAYERS
from tests.tiny.configs import IMAGE, PAD, VISION_END, VISION_START

pytestmark = pytest.mark.skipif(not tiny.transformers_has("qwen3_5"), reason="this release has no qwen3_5")
#: Layers 2 and 5 attend.
RECURRENT = "0, 1, 3, 4"
GRID = (4, 8)


class GriddedProcessor(Processor):
    """As a Qwen processor: 4 x 8 patches become 8 visual tokens between two marks."""

    def __call__(self, images, text, padding, padding_side, return_tensors):
        rows, pixels = [], []
        for one, group in zip(text, images, strict=True):
            before, after = (self.tokenizer(part)["input_ids"] for part in one.split(self.image_token))
            rows.append([*before, 7, VISION_START, *[IMAGE] * 8, VISION_END, *after])
            for image in group:
                values = torch.tensor(list(image.resize((SIDE, 128)).tobytes()), dtype=torch.float64)
                pixels.append(values[: GRID[0] * GRID[1] * 96].view(-1, 96) / 64 - 2)
        width = max(map(len, rows))
        ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": (ids != PAD).long(),
            "pixel_values": torch.cat(pixels),
            "image_grid_thw": torch.tensor([[1, *GRID]] * len(pixels)),
            "mm_token_type_ids": (ids == IMAGE).int(),
        }


def model() -> Any:
    return tiny.model("qwen3_5", layers=LAYERS).requires_grad_(False)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("samples")
    calibrate_stub.samples(folder, count=48)
    others = [json.dumps({"image": f"{i}.png", "prompt": "where", "answer": "x"}) for i in range(4)]
    (folder / "others.jsonl").write_text("\n".join(others))
    return Options(
        model="tiny",
        data=str(folder / "samples.jsonl"),
        evaluation_data=str(folder / "others.jsonl"),
        demand=Demand(agreement=0.8, best_effort=True),
        settings={"masking": {"samples": 4}},
        measure=12,
        answer_tokens=2,
        timing_rounds=0,
    )


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, loading: Any, check: Any) -> Loaded:
        check(model().config)
        return Loaded(model(), GriddedProcessor(), name, None)

    monkeypatch.setattr("calibrate.pipeline.run.load", load)


def test_from_samples_to_a_plan_that_is_applied(options: Options, tmp_path: Any) -> None:
    said: list[str] = []
    outcome = calibrate_and_plan(options, said.append)
    profile, decision = outcome.profile, outcome.decision
    assert profile is not None and decision is not None and outcome.evaluation is not None

    assert set(profile.probes) == {"prompt", "masking"}
    reason = f"needs attention in every layer, and layers {RECURRENT} of qwen3_5 are recurrent"
    for name in ("influence", "sinks", "sparsity", "value_norms"):
        assert f"{name}: not measured, it {reason}" in said
    assert any(reason in note for note in decision.notes)
    masking = profile.probes["masking"].values
    assert masking["alone_before"]["k"] == [1, 2, 3, 4, 5, 6] and masking["masked_from"]["k"] == [0, 1, 2, 3, 4, 5]
    assert masking["skipped"]["k"] == [2, 5]
    assert masking["left_out"] == [
        "prefix_before", "prefix_open_before", "self_before", "merged_before", "masked_before", "uncached",
    ]  # fmt: skip

    assert decision.executed > 4 and not any("cannot be executed" in note for note in decision.notes)
    assert not decision.schedule.empty and able(model())(decision.schedule)
    baseline = next(row for row in outcome.evaluation.rows if row.policy.startswith("fastv"))
    assert baseline.policy.startswith("fastv:k=3,")  # the first layer after which there is attention to rank by

    plan = freeze(outcome)
    plan.save(tmp_path / "plan.json")
    built = model()
    inputs = tiny.inputs("qwen3_5", batch=2, left_pad=2)
    generated = continuation(2)
    with Plan.load(tmp_path / "plan.json").apply(built):
        found = logits(built, inputs, generated)
    expected = run(built, inputs, decision.schedule, generated)
    assert difference(found, [expected.prefill, *expected.steps]) < TOLERANCE
    assert "some layers keep states" in page(plan, profile, decision.trials, "plan.json")


def test_a_probe_that_is_asked_for_is_refused_by_name(options: Options) -> None:
    wanted = replace(options, probes=("influence", "masking"), settings={})
    with pytest.raises(UnsupportedModelError, match=rf"'influence' needs attention .* {RECURRENT} of qwen3_5"):
        calibrate_and_plan(wanted, lambda line: None)


def test_points_are_the_slow_reference() -> None:
    """Where the image is hidden from the text, and where it is dropped."""
    built, inputs = model(), tiny.inputs("qwen3_5", batch=2, left_pad=2)
    for name, k in (("alone_before", 2), ("masked_from", 0), ("masked_from", 3), ("skipped", 5)):
        wanted = schedule(name, k, LAYERS)
        expected = run(built, inputs, wanted, continuation(2)).prefill.log_softmax(-1)
        assert (first_logits(built, inputs, wanted) - expected).abs().max() < 1e-5, (name, k)


def test_layers_that_read_the_keys_of_others_run_what_they_can() -> None:
    """Layers 4 and 5 read those of 3 and 2: beside these no visual row can run alone."""
    run = Executed(tiny.model("gemma4-sharing", layers=LAYERS), tiny.inputs("gemma4-sharing", batch=2), LAYERS)
    assert run.able("alone_before") == run.able("prefix_before") == run.able("masked_before") == [1, 2]
    assert run.able("masked_from") == [0, 1, 2, 3, 4, 5] and run.able("skipped") == [0, 1, 4, 5]
    assert (run.point("alone_before", 2, [1, 0]) - run.dense[[1, 0]]).abs().max() > 1e-3


def test_the_parts_of_a_model_are_found_once_however_many_schedules_are_asked_about(monkeypatch) -> None:
    found = []
    monkeypatch.setattr(execute, "find_parts", lambda model: found.append(model) or find_parts(model))
    can_run = able(model())
    spec = ModelSpec.from_config(model().config.to_dict())
    assert [can_run(parse(f"fastv:k={k}").schedule(spec)) for k in (2, 3)] == [False, True]
    assert len(found) == 1


def test_rankings_move_to_layers_that_attend() -> None:
    spec = ModelSpec.from_config(model().config.to_dict())
    assert spec.decoder.recurrent == (0, 1, 3, 4)
    assert str(parse("fastv:k=2,ratio=0.5").fitted(spec)) == "fastv:k=3,ratio=0.5"
    assert parse("fastv:k=3,ratio=0.5").fitted(spec).k == 3
    assert parse("fastv:k=4,ratio=0.5").fitted(spec).k == 4  # no layer that could go attends later
    assert not able(model())(parse("fastv:k=2").schedule(spec))
    assert schedule("skipped", 0, LAYERS).stages[0] == Stage(
        first=0, last=1, text_to_visual="none", cache_visual="none"
    )
