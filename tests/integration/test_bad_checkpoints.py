"""Checkpoints that are cut off, hold a program, or do not fit; processors that add labels; overlays that cannot be."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner

from calibrate.inputs.bundled import reference_path
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import identify
from calibrate.inputs.load import load
from calibrate.inputs.samples import load_samples
from calibrate.running.patches import grid
from planner.cli import cli
from planner.cli.options import fits
from planner.errors import InputError
from planner.plan import Decision, Plan
from planner.report.overlay import grid_of
from planner.schedule import dense
from planner.spec import ModelSpec
from tests import tiny
from tests.tiny.configs import IMAGE

PLAIN = reference_path("plain")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the bundled model's folder."""
    copied = tmp_path / "model"
    shutil.copytree(PLAIN, copied, ignore=shutil.ignore_patterns("profile*", "*.csv", "*.md"))
    return copied


class Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a program in a checkpoint was run",))


def test_a_checkpoint_that_is_cut_off_is_refused(checkpoint):
    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    for part in (content[: len(content) // 2], content[:4], b"", b"\xff" * 100):
        weights.write_bytes(part)
        with pytest.raises(InputError, match="cannot load") as caught:
            load(str(checkpoint))
        assert "damaged" in caught.value.remedy or "complete" in caught.value.remedy


@pytest.mark.parametrize("content", [pickle.dumps({"x": Program()}, protocol=2), b"no pickle", b""])
def test_a_pickle_is_refused_and_no_program_in_it_runs(checkpoint, content, capsys):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match="cannot load"):
        load(str(checkpoint))
    torch.save({"x": Program()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load"):
        load(str(checkpoint))
    assert "was run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"1", b"\xff"])
def test_damaged_files_beside_the_weights_are_refused(checkpoint, name, content):
    if not (checkpoint / name).exists():
        pytest.skip(f"the bundled model has no {name}")
    (checkpoint / "processor_config.json").unlink()
    (checkpoint / name).write_bytes(content)
    with pytest.raises(InputError):
        load(str(checkpoint))


def test_labels_that_a_processor_adds_are_left_out():
    """As PaliGemma's does."""

    class Labelling:
        def __init__(self, own: Any) -> None:
            self.own, self.tokenizer, self.chat_template = own, own.tokenizer, own.chat_template

        def apply_chat_template(self, *arguments: Any, **settings: Any) -> Any:
            return self.own.apply_chat_template(*arguments, **settings)

        def __call__(self, **arguments: Any) -> Any:
            found = self.own(**arguments)
            return {**found, "labels": found["input_ids"].clone()}

    sample = load_samples(reference_path("easy_vqa") / "calibration.jsonl")[0]
    found = Encoder(Labelling(load(str(PLAIN)).processor), (3,))([sample])
    assert "labels" not in found and "pixel_values" in found


def test_an_overlay_of_an_image_in_tiles_is_refused():
    """Four tiles of 16 and a thumbnail have no common grid, whether or not their number is a square."""
    assert grid_of(16, tile=16) == (4, 4)
    for tokens in (64, 80):
        with pytest.raises(
            InputError, match=f"cut into tiles: its {tokens} visual tokens are {tokens // 16} grids of 16"
        ):
            grid_of(tokens, tile=16)
    assert grid_of(24, thw=(1, 8, 12), merge=2) == (4, 6)
    with pytest.raises(InputError, match="not the 4 x 6"):
        grid_of(48, thw=(1, 8, 12), merge=2)


def test_the_overlay_grid_of_pixtral_follows_from_its_pixels():
    """Patches of 4 pixels, merged two by two: 32 x 48 pixels are 4 rows of 6."""
    known = SimpleNamespace(spec=ModelSpec.from_config(tiny.config("mistral3").to_dict()), visual_ids=(IMAGE,))
    inputs = {"input_ids": torch.tensor([[7] + [IMAGE] * 24]), "image_sizes": torch.tensor([[32, 48]])}
    assert grid(inputs, known) == (4, 6)


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.cli.run.load_for", lambda *_: pytest.fail("a model was loaded"))


def test_two_images_with_an_overlay_are_wrong_usage_before_anything_is_loaded(tmp_path, loads_nothing):
    found = CliRunner().invoke(
        cli, ["run", "plan.json", "--image", "a.png", "--image", "b.png", "--prompt", "x", "--overlay", "o.png"]
    )
    assert found.exit_code == 2 and "--overlay draws one image" in found.output


def test_run_generates_nothing_where_the_overlay_cannot_be_drawn(tmp_path, monkeypatch):
    """And what a model answers does not reach the terminal as commands."""
    loaded = load(str(PLAIN))
    identity = identify(loaded.model, "reference/plain").identity
    plan = Plan(model=identity, decision=Decision(policy="dense", schedule=dense(identity.layers))).sealed()
    plan.save(tmp_path / "plan.json")
    line = json.loads((reference_path("easy_vqa") / "evaluation.jsonl").read_text().splitlines()[0])
    image = reference_path("easy_vqa") / line["image"]
    monkeypatch.setattr("planner.cli.run.load_for", lambda *_: loaded)
    monkeypatch.setattr("calibrate.inputs.encode.Encoder.decode", lambda self, ids: ["\x1b[2J\x1b]0;x\x07 blue"])
    common = ["run", str(tmp_path / "plan.json"), "--image", str(image), "--prompt", line["prompt"]]
    found = CliRunner().invoke(cli, common)
    assert found.exit_code == 0, found.output
    assert "\x1b" not in found.output and r"\x1b[2J" in found.stdout
    monkeypatch.setattr("calibrate.running.patches.grid_of", refuse)
    monkeypatch.setattr("calibrate.running.execute.generate", lambda *_: pytest.fail("it generated"))
    found = CliRunner().invoke(cli, [*common, "--overlay", str(tmp_path / "x.png")])
    assert isinstance(found.exception, InputError) and not (tmp_path / "x.png").exists()


def refuse(*_: object) -> None:
    raise InputError("no grid", "Leave out --overlay")


def test_a_plan_tells_what_of_the_processor_differs(tmp_path, capsys):
    class Fitting:
        processor: ClassVar = {"class": "X", "image_processor": {"image_mean": [0.5]}, "chat_template_sha256": None}

        @staticmethod
        def check_model(*_: object) -> str:
            return ""

    encoder = SimpleNamespace(settings=lambda: {"class": "X", "image_processor": {"image_mean": [0.4]},
                                                "chat_template_sha256": "a" * 64})  # fmt: skip
    fits(Fitting(), SimpleNamespace(model=None), encoder, False)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said == (
        "Warning: the plan was measured with another processor: image_mean ([0.5] and [0.4]), the chat template, which "
        "one of them lacks differ\n"
    )
