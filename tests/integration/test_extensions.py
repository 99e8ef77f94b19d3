"""A package outside the tree adds a policy, a probe, a family and a hardware row: all used from the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calibrate.inputs.bundled import reference_path
from planner.cost import cost
from planner.schedule import Fraction, Schedule, Select, Stage
from planner.spec import ModelSpec
from planner.workload import Workload
from tests import toy

ROOT = Path(__file__).parents[2]
#: Runs command lines one after the other in one process, in which torch is imported once.
DRIVER = """
import json, sys
from click.testing import CliRunner
from planner.cli import cli
from planner.errors import PlannerError

found = []
for arguments in json.load(sys.stdin):
    done = CliRunner().invoke(cli, arguments)
    if done.exception is not None and not isinstance(done.exception, (SystemExit, PlannerError)):
        raise done.exception
    found.append([done.exit_code, done.stdout, done.stderr + str(done.exception or "")])
json.dump(found, sys.stdout)
"""


def plan(site, *lines):
    """Exit status, stdout and stderr of each command line, with a folder of packages installed."""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "HF_MODULES_CACHE": str(site / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([list(map(str, line)) for line in lines]),
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    toy.package(folder)
    return folder


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "toy"
    toy.model(folder, reference_path("windowed"))
    return folder


@pytest.fixture(scope="module")
def costs(site, toy_model):
    """The command lines that need no model."""
    return plan(
        site,
        ["ls", "policies"], ["ls", "probes"], ["ls", "families"], ["ls", "hardware"],
        ["report", toy_model, "--policy", "toy:keep=0.25", "--hardware", "toy-npu", "--format", "json"],
        ["report", toy_model, "--sweep", "toy:keep=0.25/0.5", "--hardware", "toy-npu"],
        ["report", toy_model, "--sweep", "prellm:keep=0.5+toy:keep=0.25/0.5"],
        ["report", "llava-1.5-7b", "--policy", "toyy"],
    )  # fmt: skip


def test_what_a_package_adds_is_listed(costs):
    for (status, stdout, stderr), name in zip(costs, ("toy", "toy_attention", "toy_vlm", "toy-npu"), strict=False):
        assert status == 0 and not stderr
        (line,) = [line for line in stdout.splitlines() if line.split()[:1] == [name]]
    assert "made up for a test" in line
    policy = next(line for line in costs[0][1].splitlines() if line.startswith("toy "))
    assert policy.split()[1:3] == ["keep", "yes"] and policy.endswith("keep a random share")


def test_policy_family_and_hardware_are_reported(costs, toy_model):
    """Against facts written out: the family's one matrix more than LLaVA's, and the policy's schedule."""
    status, stdout, _ = costs[4]
    assert status == 0
    dense, row = json.loads(stdout)["rows"]
    config = json.loads((toy_model / "config.json").read_text())
    llava = ModelSpec.from_config({**config, "model_type": "llava"})
    select = Select(rank_by="random", keep=Fraction(fraction=0.25))
    schedule = Schedule(stages=(Stage(first=0, last=1, selects=(select,)), Stage(first=1, last=10)))
    prompt = Workload(visual_tokens=144)
    expected = cost(llava, prompt, schedule).prefill
    assert row["policy"] == "toy:keep=0.25"
    assert row["prefill_by_component"]["projector"] == expected["projector"] + 2 * 144 * 128 * 128
    assert row["prefill_flops"] == sum(expected.values()) + 2 * 144 * 128 * 128
    assert dense["prefill_flops"] > row["prefill_flops"]


def test_policy_and_composition_are_swept(costs):
    tables = [list(csv.DictReader(io.StringIO(stdout))) for _, stdout, _ in costs[5:7]]
    assert [(row["policy"], row["keep"]) for row in tables[0]] == [("toy", "0.25"), ("toy", "0.5")]
    assert int(tables[0][0]["prefill_flops"]) == json.loads(costs[4][1])["rows"][1]["prefill_flops"]
    assert all(float(row["estimated_prefill_ms"]) > 0 for row in tables[0])
    assert [row["toy.keep"] for row in tables[1]] == ["0.25", "0.5"]
    assert int(tables[1][1]["prefill_flops"]) < int(tables[0][1]["prefill_flops"])


def test_a_misspelled_name_is_told_what_packages_add(costs):
    assert costs[7][0] == 1 and "Did you mean 'toy'?" in costs[7][2]


def test_policy_probe_and_family_are_calibrated_evaluated_and_shown(site, toy_model, tmp_path):
    data = reference_path("easy_vqa")
    calibrated, shown, evaluated, swept = plan(
        site,
        ["calibrate", toy_model, "--trust-remote-code", "--data", data / "calibration.jsonl", "--num-samples", 16,
         "--eval-data", data / "evaluation.jsonl", "--eval-samples", 4, "--probes", "toy_attention", "--set",
         "toy_attention.scale=2", "--agreement", 0.7, "--answer-tokens", 4, "--measure", 80, "-v", "-o", tmp_path],
        ["show", tmp_path / "profile.json"],
        ["evaluate", tmp_path / "plan.json", "--model", toy_model, "--trust-remote-code", "--data",
         data / "evaluation.jsonl", "--num-samples", 4, "--rounds", 0, "--policy", "toy", "--policy", "all",
         "--format", "json"],
        ["report", tmp_path / "profile.json", "--sweep", "toy:keep=0.1..0.9..0.4"],
    )  # fmt: skip
    assert calibrated[0] == 0, calibrated[2]
    assert "toy:keep=0.97: loss 0.000 on " in calibrated[2], "what the policy proposes is executed"
    profile = json.loads((tmp_path / "profile.json").read_text())
    found = profile["probes"]["toy_attention"]
    assert profile["model"]["family"] == "toy_vlm" and found["settings"] == {"scale": 2.0}
    assert len(found["values"]["image"]) == 10 and found["values"]["highest"] > 0
    # Its section has a row per layer although nothing here knows the probe, in the report and as text.
    assert "Toy attention" in (tmp_path / "report.html").read_text()
    section = shown[1].split("Toy attention")[1]
    for layer, value in enumerate(found["values"]["image"]):
        assert any(line.split() == [str(layer), f"{value:.3g}"] for line in section.splitlines())
    assert evaluated[0] == 0, evaluated[2]
    rows = {row["policy"]: row for row in json.loads(evaluated[1])["rows"]}
    planned = list(rows.values())[1]
    (turned,) = [row for name, row in rows.items() if name.startswith("toy:") and row is not planned]
    # A rival never gets less than the plan; where even its cheapest member costs more, it is that one.
    more, cheapest = turned["decoder_flops_ratio"] - planned["decoder_flops_ratio"], "keep=0.0001" in turned["policy"]
    assert 0 <= more < 0.01 or (more > 0 and cheapest), (turned["policy"], planned["policy"])
    assert {name.partition(":")[0] for name in rows} >= {"toy", "fastv", "random", "prellm"}
    assert [row["keep"] for row in csv.DictReader(io.StringIO(swept[1]))] == ["0.1", "0.5", "0.9"]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A package whose every entry leads nowhere, beside one that takes names that are taken."""
    folder = tmp_path_factory.mktemp("broken")
    groups = ("policies", "probes", "families", "hardware")
    lines = [
        f"[vlm_planner.{group}]\nbad_{group} = planner_bad{':Bad' if group in groups[:2] else ''}" for group in groups
    ]
    toy.metadata(folder, "planner-bad", "\n".join(lines))
    toy.metadata(folder, "planner-twin", "[vlm_planner.policies]\nfastv = planner_bad:Bad\nbad_policies = other:Bad")
    (folder / "config.json").write_text('{"model_type": "bad_families"}')
    return folder


def test_a_broken_package_is_named_and_breaks_nothing_else(broken):
    lines = [
        ["ls", "policies"], ["ls", "probes"], ["ls", "families"], ["ls", "hardware"],
        ["report", "llava-1.5-7b", "--policy", "fastv", "--hardware", "l4"],
        ["report", "llava-1.5-7b", "--policy", "bad_policies"],
        ["report", broken / "config.json"],
        ["report", "llava-1.5-7b", "--hardware", "bad_hardware"],
        ["calibrate", "--probes", "bad_probes", "--profile-only", "-o", broken / "out"],
    ]  # fmt: skip
    found = plan(broken, *lines)
    for status, stdout, stderr in found[1:4]:
        assert status == 0 and len(stdout.splitlines()) > 8
        assert "Warning: the package planner-bad 0.1 adds 'bad_" in stderr and "ModuleNotFoundError" in stderr
    both = "planner-bad 0.1 and planner-twin 0.1 both add 'bad_policies'"
    assert found[0][0] == 0 and both in found[0][2]
    assert found[4][0] == 0 and "fastv" in found[4][1], "a name of the planner's own is not replaced"
    assert found[5][0] == 1 and both in found[5][2]
    for status, _, stderr in found[6:]:
        assert status == 1 and "the package planner-bad 0.1 adds" in stderr and "Mend the package" in stderr
