"""What the command line accepts and refuses around a calibration, without running a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from planner import load_plan
from planner.cli import cli
from planner.errors import InputError
from planner.policies import Context, parse
from planner.profile import ProbeResult
from tests.planted import planted_profile

#: ``rate = 0.0001 n + 0.1`` between 100 and 2,000 tokens.
FIT = {"coefficients": [0.0, 1e-4, 0.1], "shortest": 100.0, "longest": 2000.0, "highest": 0.8, "r2": 1.0}


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of a model of 10 layers with 10 text tokens in its prompts, and a context probe."""
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    values = {"fit": FIT, "layers": {"10 of 32": 3}}
    whole = planted_profile()
    probes = {**whole.probes, "context": ProbeResult(n=4, settings={}, values=values)}
    whole.model_copy(update={"probes": probes}).with_arrays(whole.arrays).sealed().save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "masking.sample=3"), "Did you mean 'samples'"),
        (("--set", "maskin.samples=3"), "Did you mean 'masking'"),
        (("--set", "masking.samples=x"), "valid integer"),
        (("--set", "masking"), "PROBE.KEY=VALUE"),
        (("--set", "flip.samples=3"), "names flip, which --probes does not select"),
        (("--profile", "p.json", "--probes", "influence"), "--probes cannot be combined with --profile"),
        (("--profile", "p.json", "--shard", "0/2", "--resume"), "--resume, --shard cannot be combined with --profile"),
    ],
)
def test_wrong_usage_of_calibrate(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    found = plan("calibrate", *arguments, "-o", tmp_path / "out")
    assert found.exit_code == 2 and says in found.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "masking.samples=0"), "cannot measure 0 samples"),
        (("--set", "masking.samples=60", "--num-samples", 128), "would see samples that certify"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_a_model_is_loaded(
    arguments: tuple[object, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrate.pipeline.run.load", lambda *_: pytest.fail("a model was loaded"))
    found = plan("calibrate", *arguments, "-o", tmp_path)
    assert isinstance(found.exception, InputError) and says in str(found.exception)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("attribution.masks=95", "95 masks are too few to weigh 80 heads"),
        ("attribution.ablated=0.001", "ablating 0.001 of 80 entries leaves no choice"),
        ("attribution.samples=64", "attributing 64 of 64 samples leaves none for the mean image"),
        ("sink_masking.tau=12", "no token can reach a sink threshold of 12: at hidden size 128"),
        ("sinks.tau=12", "no token can reach a sink threshold of 12: at hidden size 128"),
        ("context.lengths=8/100000", "100000 tokens of context do not fit: the model has"),
        ("lens.words=100000", "the logit lens cannot read 100000 of"),
        ("flip.samples=65", "probe 'flip' is to measure 65 samples, and there are 64"),
    ],
)
def test_settings_that_the_configuration_makes_impossible_are_refused_before_weights_are_loaded(
    setting: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = "calibrate.inputs.load.AutoModelForImageTextToText.from_pretrained"
    monkeypatch.setattr(loader, lambda *_, **__: pytest.fail("weights were loaded"))
    probes = ("--probes", setting.partition(".")[0])
    found = plan("calibrate", "--set", setting, *probes, "--num-samples", 64, "--profile-only", "-o", tmp_path)
    assert isinstance(found.exception, InputError) and says in str(found.exception)


def test_probes_are_listed_with_their_settings() -> None:
    rows = {row["probe"]: row for row in json.loads(plan("ls", "probes", "--format", "json").output)}
    assert rows["attribution"]["settings"]["masks"] == "10000" and rows["attribution"]["runs"] == "on request"
    assert rows["context"]["settings"]["lengths"] == "auto" and rows["prompt"]["settings"] == {}
    assert "samples=32<br>curves=" in plan("ls", "probes", "--format", "md").output
    assert "answer_tokens=8" in plan("ls", "probes").output


def test_export_settles_an_automatic_rate_and_states_it(calibrated: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    found = plan("freeze", calibrated, "--policy", "context:rate=auto", "--context-tokens", 400, "-o", out)
    assert found.exit_code == 0, found.output
    made = load_plan(out)
    policy = parse(made.decision.policy)
    assert isinstance(policy, Context) and policy.rate == pytest.approx(0.14)
    assert (policy.layers, policy.protect) == (3, 10)
    assert made.prediction[0].workload.text_tokens == 410 and made.prediction[0].prefill_ratio < 1
    assert "rate=0.14" in found.output


def test_report_names_the_automatic_rate(calibrated: Path) -> None:
    found = plan(
        "report", calibrated, "--policy", "context:rate=auto", "--text-tokens", 1010, "--context-tokens", 1000,
        "--format", "json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "context:rate=auto is context:layers=3,rate=0.2,protect=10" in found.stderr
    rows = json.loads(found.stdout)["rows"]
    assert rows[1]["policy"] == "context:rate=auto", "as given"
    stated = plan(
        "report", calibrated, "--policy", "context:layers=3,rate=0.2", "--text-tokens", 1010, "--context-tokens", 1000,
        "--format", "json",
    )  # fmt: skip
    assert json.loads(stated.stdout)["rows"][1]["prefill_flops"] == rows[1]["prefill_flops"] < rows[0]["prefill_flops"]


@pytest.mark.parametrize(
    ("target", "says"), [("llava-1.5-7b", "none was given"), ("profile", "there is none. Give --context-tokens")]
)
def test_an_automatic_rate_without_profile_or_context(target: str, says: str, calibrated: Path) -> None:
    found = plan("report", calibrated if target == "profile" else target, "--policy", "context:rate=auto")
    assert isinstance(found.exception, InputError) and says in str(found.exception)
