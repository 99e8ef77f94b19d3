"""The folder of a calibration: held by one run, never overwritten by mistake, and told of when a run is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock

from calibrate.measuring.folder import claimed, kept_state
from calibrate.measuring.state import SUFFIX, load_state
from calibrate.probes.flip import FlipProbe
from planner.cli import cli
from planner.errors import InputError
from tests.integration import calibrate_stub as stub


def test_what_an_earlier_run_left_is_not_overwritten(tmp_path):
    with claimed(tmp_path):
        (tmp_path / "profile.json").write_text("mine")
        (tmp_path / f"0-of-1{SUFFIX}").write_text("mine")
    with (
        pytest.raises(InputError, match=r"holds the 0-of-1\.state\.safetensors, profile\.json") as caught,
        claimed(tmp_path),
    ):
        pass
    assert "--resume" in caught.value.remedy and "--overwrite" in caught.value.remedy
    with claimed(tmp_path, keep=False):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0-of-1{SUFFIX}", "profile.json"], "no lock stays"


def test_shards_share_a_folder_and_a_profile_may_lie_where_its_plan_is_written(tmp_path):
    with claimed(tmp_path, "0-of-2"), claimed(tmp_path, "1-of-2"):
        (tmp_path / f"0-of-2{SUFFIX}").write_text("mine")
    with claimed(tmp_path, "1-of-2"):
        pass
    with pytest.raises(InputError), claimed(tmp_path, "0-of-2"):
        pass
    (tmp_path / "profile.json").write_text("merged")
    with claimed(tmp_path, profile=tmp_path / "profile.json"):
        pass
    with pytest.raises(InputError, match=r"profile\.json"), claimed(tmp_path, profile=tmp_path / "other.json"):
        pass
    (tmp_path / "plan.json").write_text("decided")
    with pytest.raises(InputError, match=r"plan\.json") as caught, claimed(tmp_path, profile=tmp_path / "profile.json"):
        pass
    assert "--resume" not in caught.value.remedy, "nothing is measured that could be resumed"


def test_two_runs_do_not_share_a_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from calibrate.measuring.folder import claimed\n"
        "with claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another run is writing"), claimed(tmp_path):
        pass
    process.kill()
    process.communicate()
    with claimed(tmp_path):
        pass  # a lock whose holder was killed holds nothing


def test_the_command_refuses_a_folder_in_use_and_one_that_cannot_be_written(tmp_path):
    with FileLock(tmp_path / ".0-of-1.lock"):
        found = CliRunner().invoke(cli, ["calibrate", "-o", str(tmp_path)])
    assert isinstance(found.exception, InputError) and "another run" in str(found.exception)
    (tmp_path / "file").write_text("")
    found = CliRunner().invoke(cli, ["calibrate", "-o", str(tmp_path / "file" / "below")])
    assert isinstance(found.exception, InputError) and "cannot write" in str(found.exception)


def test_an_interrupt_says_what_is_kept_and_how_to_go_on(tmp_path, monkeypatch):
    chosen = stub.samples(tmp_path, count=4)
    out = tmp_path / "out"

    def interrupted(options, echo):
        stub.run(chosen, out=options.out, probes=("influence",), settings={})
        raise KeyboardInterrupt

    monkeypatch.setattr("calibrate.pipeline.run.calibrate_and_plan", interrupted)
    found = CliRunner().invoke(cli, ["calibrate", "-o", str(out), "--overwrite"], prog_name="plan")
    assert found.exit_code == 130
    assert f"{out / f'0-of-1{SUFFIX}'} keeps what was measured, of up to 4 samples" in found.output
    assert f"Go on with: plan calibrate -o {out} --resume\n" in found.output
    assert "trials" not in found.output and (out / "run.yaml").read_text() == f"output: {out}\n"
    (out / "trials.json").write_text("{}")
    (out / "profile.json").write_text("{}")
    assert "the finished profile" in kept_state(out) and "losses of the candidates that ran" in kept_state(out)
    assert kept_state(tmp_path / "none") == f"Interrupted before anything was written into {tmp_path / 'none'}"


def test_only_the_first_process_of_a_launch_holds_the_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "RANK", "1")

    def reached(*_: object) -> None:
        raise RuntimeError("reached")

    monkeypatch.setattr("calibrate.pipeline.run.calibrate_and_plan", reached)
    with FileLock(tmp_path / ".0-of-1.lock"):
        found = CliRunner().invoke(cli, ["calibrate", "-o", str(tmp_path)])
    assert "reached" in str(found.exception)


@pytest.mark.parametrize("name", ["reference/../..", "reference/none", "reference/"])
def test_an_id_cannot_lead_out_of_the_bundled_models(name):
    from calibrate.inputs.load_options import LoadOptions
    from planner.cli.options import load_for

    with pytest.raises(InputError, match="no bundled model is called"):
        load_for(name, None, LoadOptions())


def test_a_folder_name_with_strange_letters(tmp_path):
    out: Path = tmp_path / "a b$c=é"
    with claimed(out):
        assert out.is_dir()


def test_an_interrupt_keeps_every_step_that_was_finished(tmp_path, monkeypatch):
    """Whatever the interval at which states are written: here none is due before the interrupt."""
    chosen = stub.samples(tmp_path, count=4)
    ran = []
    original = FlipProbe.run

    def interrupted(self, batch):
        if ran:
            raise KeyboardInterrupt
        ran.append(batch.ids)
        original(self, batch)

    monkeypatch.setattr(FlipProbe, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stub.run(chosen, out=tmp_path / "out", probes=("flip",), settings={})
    _, tables = load_state(tmp_path / "out" / f"0-of-1{SUFFIX}")
    assert len(tables["flip"]) == len(ran[0]) == 2 and len(tables["prompt"]) == 4
