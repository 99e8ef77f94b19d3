"""The training package end to end in a few steps, and the two equalities that its figures rest on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("easy_vqa")

from click.testing import CliRunner
from planner.profiles.reference.train.__main__ import main
from planner.profiles.reference.train.build import PROMPT, build_model, build_processor
from planner.profiles.reference.train.data import load_split
from planner.profiles.reference.train.decoder import move_deeper
from planner.profiles.reference.train.packing import Packer
from planner.profiles.reference.train.window import Window, random_ranks, run_decoder
from transformers import AutoProcessor, LlavaForConditionalGeneration

LAYERS = 10


@pytest.fixture(scope="module")
def kit():
    """Two images with all their questions, a random float64 model, and the tower's features of the images."""
    torch.manual_seed(0)
    split = load_split("train").first(2)
    processor = build_processor(load_split("train"))
    model = build_model(processor.tokenizer).double().eval()
    # The initial weights are so small that every token looks alike; these let the image through.
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    groups = list(split.by_image().values())
    opened = [Image.open(split.images / f"{group[0].image_id}.png").convert("RGB") for group in groups]
    pixels = processor.image_processor(opened, return_tensors="pt")["pixel_values"].double()
    with torch.no_grad():
        features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    pack = Packer(processor.tokenizer).pack([[(q.prompt, q.answer) for q in group] for group in groups])
    return processor, model, groups, opened, features, pack


@torch.no_grad()
def logits(model, pack, features, window):
    hidden = run_decoder(model, pack, features, window, random_ranks(pack.visual, torch.Generator().manual_seed(0)))
    row, column = pack.ask.unbind(1)
    return model.lm_head(hidden[row, column])


@torch.no_grad()
def test_packed_questions_equal_separate_prompts(kit) -> None:
    processor, model, groups, opened, features, pack = kit
    packed = logits(model, pack, features, Window.uniform(2, LAYERS))
    separate = []
    for group, image in zip(groups, opened, strict=True):
        for question in group:
            text = PROMPT.format(question=question.prompt)
            inputs = processor(images=image, text=text, return_tensors="pt")
            assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 144
            inputs["pixel_values"] = inputs["pixel_values"].double()
            separate.append(model(**inputs).logits[0, -1])
    assert (packed - torch.stack(separate)).abs().max() < 1e-10
    # Different questions about one image are told apart, or the equality above would show nothing.
    assert (packed[0] - packed[1]).abs().max() > 1e-3


def test_windows_close_what_they_say(kit) -> None:
    _, model, _, _, features, pack = kit
    swapped = features.flip(0)

    def change(**window: int) -> float:
        restricted = Window.uniform(2, LAYERS, **window)
        return (logits(model, pack, features, restricted) - logits(model, pack, swapped, restricted)).abs().max().item()

    assert change(closed=LAYERS) == 0.0
    assert change(exit=0) == 0.0
    assert change(closed=LAYERS - 1) > 1e-6
    assert change(exit=1) > 1e-6
    # Dropping all visual tokens after layer 3 is the same as leaving the image there.
    dropped = logits(model, pack, features, Window.uniform(2, LAYERS, keep=0, filter=3))
    left = logits(model, pack, features, Window.uniform(2, LAYERS, exit=4))
    assert (dropped - left).abs().max() < 1e-10
    # Visual self-attention matters on its own, and only as far as it is switched off.
    dense = logits(model, pack, features, Window.uniform(2, LAYERS))
    assert (logits(model, pack, features, Window.uniform(2, LAYERS, alone=1)) - dense).abs().max() > 1e-6
    assert (logits(model, pack, features, Window.uniform(2, LAYERS, alone=0)) - dense).abs().max() == 0.0


def test_moving_layers_deeper_leaves_no_ops_in_front(kit) -> None:
    _, model, _, _, features, pack = kit
    moved, first_seven = copy.deepcopy(model), copy.deepcopy(model)
    move_deeper(moved, by=3)
    del first_seven.model.language_model.layers[7:]
    dense = logits(moved, pack, features, Window.uniform(2, LAYERS))
    assert (dense - logits(first_seven, pack, features, Window.uniform(2, 7))).abs().max() < 1e-10
    # Nothing is read in front, so closing the image there changes nothing; one layer further it does.
    closed = [logits(moved, pack, features, Window.uniform(2, LAYERS, alone=k, closed=k)) for k in (3, 4)]
    assert (closed[0] - dense).abs().max() < 1e-10
    assert (closed[1] - dense).abs().max() > 1e-6


def test_a_few_steps_make_models_that_load_and_answer(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--steps-scale", "0.002", "--images", "4"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "windowed"]
    states = {}
    for name in ("plain", "windowed"):
        folder = tmp_path / name
        processor = AutoProcessor.from_pretrained(folder)
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        states[name] = model.state_dict()
        content = [{"type": "image"}, {"type": "text", "text": "what shape is present?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert text == PROMPT.format(question="what shape is present?")
        inputs = processor(images=Image.new("RGB", (64, 64), "white"), text=text, return_tensors="pt")
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
        measured = json.loads((folder / "evaluation.json").read_text())
        assert measured["test_split"]["images"] == 4
        assert measured["agreement"]["generate"] == 1.0
        assert "shortened" in (folder / "README.md").read_text()
        assert (folder / "training_log.csv").read_text().startswith("phase,step,loss,accuracy,lr,seconds\ntower,")
    tower = [key for key in states["plain"] if "vision_tower" in key]
    moved = [key for key in states["plain"] if not torch.equal(states["plain"][key], states["windowed"][key])]
    assert tower and not set(tower) & set(moved)
    assert any("layers.0.self_attn.q_proj" in key for key in moved)


def test_windowed_without_plain_says_what_to_run_first(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--variant", "windowed", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "run the plain stage first" in result.output
