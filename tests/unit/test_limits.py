"""Numbers that no model and no request has: refused at once, or costed without counting one by one."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest

from calibrate.inputs.samples import load_samples
from planner.cost import cost
from planner.cost.hardware import hardware, shipped_row
from planner.cost.vision import vision_flops
from planner.errors import InputError, PlannerError
from planner.policies import parse
from planner.report.targets import read_target
from planner.schedule import dense
from planner.spec import ModelSpec, shipped_model
from planner.workload import Workload
from tests import tiny


def config(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json.dumps(shipped_model("llava-1.5-7b")["config"]))
    body["text_config"].update(changes)
    return body


@pytest.mark.parametrize("value", [10**9, 5000, 2**31, 10**400, math.inf, math.nan, -1, 0.5, True, "32", [32], {}])
def test_a_number_of_layers_that_no_model_has(value):
    with pytest.raises(InputError, match=r"num_hidden_layers|text_config"):
        ModelSpec.from_config(config(num_hidden_layers=value))


def test_a_tower_of_a_billion_layers():
    body = config()
    body["vision_config"]["num_hidden_layers"] = 10**9
    with pytest.raises(InputError, match="4096 is the most"):
        ModelSpec.from_config(body)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": 3},
        {"layer_types": [[]] * 32},
        {"layer_types": "full_attention"},
        {"hidden_size": [4096]},
        {"rope_scaling": 3, "sliding_window": "x"},
        {"num_key_value_heads": {}},
        {"model_type": []},
    ],
)
def test_fields_of_another_kind_are_refused_or_left_alone_and_never_a_traceback(changes):
    try:
        ModelSpec.from_config(config(**changes))
    except PlannerError as error:
        assert error.remedy


@pytest.mark.parametrize("body", [{"vision_config": 3}, {"config": [1]}, {"text_config": []}])
def test_blocks_of_another_kind(body, tmp_path):
    whole = {} if "config" in body else config()
    (tmp_path / "config.json").write_text(json.dumps({**whole, **body}))
    for read in (ModelSpec.from_config, read_target):
        with pytest.raises(PlannerError):
            read(str(tmp_path / "config.json"))


def test_hardware_rows_that_are_no_rows(tmp_path):
    for number, text in enumerate(("[" * 3000, '{"peak_tflops": 1e999}', '{"name": "\\ud800"}', "3", "\0")):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(InputError):
            hardware(path)


@pytest.mark.parametrize("field", ["peak_tflops", "bandwidth_gbs", "memory_gb", "matmul"])
def test_a_hardware_row_of_next_to_nothing(field, tmp_path):
    """Its times would be divisions by zero."""
    row = json.loads(shipped_row("h100-sxm").model_dump_json())
    row["measured"] = {}
    (row["measured"] if field == "matmul" else row)[field] = 5e-324
    (tmp_path / "row.json").write_text(json.dumps(row))
    with pytest.raises(InputError, match=field):
        hardware(tmp_path / "row.json")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have(name, tmp_path):
    for read in (ModelSpec.from_config, read_target, hardware):
        with pytest.raises(InputError):
            read(name)
    (tmp_path / "s.jsonl").write_text(json.dumps({"image": name, "prompt": "x"}))
    with pytest.raises(InputError, match="does not exist"):
        load_samples(tmp_path / "s.jsonl")


def test_the_largest_batch_of_the_longest_prompt_takes_no_memory():
    """A request repeated 65,536 times: whoever lists its images needs gigabytes."""
    spec = ModelSpec.from_config("qwen2-vl-7b")
    request = Workload(visual_tokens=1 << 24, batch=1 << 16)
    schedules = [dense(spec.layers), parse("prellm:keep=0.5").schedule(spec, request)]
    tracemalloc.start()
    for schedule in schedules:
        assert cost(spec, request, schedule).prefill_flops > 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 << 20


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "mllama", "internvl"])
@pytest.mark.parametrize("ranks", [False, True])
def test_a_batch_sees_as_often_as_it_has_requests(family, ranks):
    """Where no request attends to another, the tower's work is that of one, times the batch."""
    spec = ModelSpec.from_config(tiny.config(family).to_dict())
    sizes = ((64, 64), (96, 64))
    one, three = (vision_flops(spec, sizes, 0, batch, ranks) for batch in (1, 3))
    assert three == tuple(3 * flops for flops in one) and one[0] > 0


def test_pixtral_puts_a_batch_into_one_sequence():
    """Two images are one masked sequence, whether they are one request's or two's."""
    spec = ModelSpec.from_config(tiny.config("mistral3").to_dict())
    together = vision_flops(spec, ((64, 64), (64, 64)), 0, 1, False)
    assert vision_flops(spec, ((64, 64),), 0, 2, False) == together
    assert together[0] > 2 * vision_flops(spec, ((64, 64),), 0, 1, False)[0], "pairs of two images count"
