"""Models and processors: what is loaded, how samples become inputs, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor, LlamaConfig, LlamaForCausalLM

from calibrate.inputs import load as loading
from calibrate.inputs.bundled import REBUILT, reference, reference_path
from calibrate.inputs.conversation import Part, Turn
from calibrate.inputs.encode import Encoder, to_device
from calibrate.inputs.identity import identify
from calibrate.inputs.load import load
from calibrate.inputs.load_options import LoadOptions
from calibrate.inputs.plain_processor import PlainProcessor
from calibrate.inputs.samples import Sample, load_samples
from planner.cli import cli
from planner.errors import InputError, SampleError, UnsupportedModelError
from planner.profile import processor_differences

PLAIN = reference_path("plain")


@pytest.fixture(scope="module")
def plain():
    return load(str(PLAIN))


@pytest.fixture(scope="module")
def some():
    return load_samples(reference_path("easy_vqa") / "calibration.jsonl").choose(6)


@pytest.fixture(scope="module")
def encoder(plain):
    return Encoder(plain.processor, identify(plain.model, plain.id).visual_ids)


def test_half_precision_weights_run_in_float32_on_a_cpu(plain):
    assert plain.model.dtype == torch.float32 and not plain.model.training
    assert plain.id == "reference/plain", "a bundled model keeps the name that finds it again"
    assert load(str(PLAIN), LoadOptions(dtype="bfloat16")).model.dtype == torch.bfloat16


def test_identity_names_the_model_and_no_path_of_this_machine(plain):
    known = identify(plain.model, plain.id)
    assert (known.layers, known.identity.hidden_size, known.visual_ids) == (10, 128, (3,))
    assert str(PLAIN) not in json.dumps(known.identity.config)
    again = identify(load(str(PLAIN), LoadOptions(dtype="bfloat16")).model, "other")
    assert again.identity.config_digest == known.identity.config_digest


def test_prompts_follow_the_chat_template_and_are_padded_on_the_left(encoder, some):
    assert encoder.prompt(some[0]) == f"USER: <image>\n{some[0].prompt} ASSISTANT:"
    inputs = encoder(some)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert (ids == 3).sum(dim=1).tolist() == [144] * 6
    assert (mask[:, -1] == 1).all() and (mask.diff(dim=1) >= 0).all() and mask.sum() < mask.numel()
    for sample, row, valid in zip(some, ids, mask.bool(), strict=True):
        assert torch.equal(row[valid], encoder([sample])["input_ids"][0])
    assert encoder.settings()["image_processor"]["crop_size"] == {"height": 60, "width": 60}


def test_several_images_in_one_sample(encoder, some):
    double = Sample((*some[0].images, *some[1].images), "which is larger?")
    inputs = encoder([double])
    assert (inputs["input_ids"] == 3).sum() == 288 and len(inputs["pixel_values"]) == 2


def test_a_conversation_is_written_by_the_chat_template(encoder, some, tmp_path):
    picture, other = (sample.images[0] for sample in some[:2])
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "This "}, {"type": "image", "image": str(picture)},
                                     {"type": "text", "text": "or "}, {"type": "image", "image": str(other)}]},
        {"role": "assistant", "content": "The first."},
        {"role": "user", "content": "Why?"},
    ]  # fmt: skip
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": talk, "answer": "red"}))
    (sample,) = load_samples(path)
    written = "SYSTEM: Be brief. USER: This <image>\nor <image>\n ASSISTANT: The first. USER: Why? ASSISTANT:"
    assert encoder.prompt(sample) == written
    batch = encoder([sample, some[0]])
    assert (batch["input_ids"] == 3).sum(dim=1).tolist() == [288, 144] and len(batch["pixel_values"]) == 3
    alone = encoder([Sample((picture,), "x"), Sample((other,), "x"), some[0]])["pixel_values"]
    assert torch.equal(batch["pixel_values"], alone), "pictures keep the order of the conversation"


def test_a_template_that_refuses_a_conversation_is_named(encoder, monkeypatch):
    talk = (Turn("system", (Part("text", "x"),)), Turn("user", (Part("text", "y"),)))
    sample = Sample((Image.new("RGB", (8, 8)),), "y", where="samples.jsonl:7", turns=talk)
    refuse = "{{ raise_exception('System role not supported') if messages[0]['role'] == 'system' else '' }}"
    monkeypatch.setattr(encoder.processor, "chat_template", refuse)
    with pytest.raises(SampleError, match=r"samples\.jsonl:7: .*System role not supported"):
        encoder.prompt(sample)
    monkeypatch.setattr(encoder, "_template", None)
    with pytest.raises(SampleError, match="no chat template to write a conversation with"):
        encoder.prompt(sample)


def test_videos_need_a_processor_that_reads_them(encoder, tmp_path, monkeypatch):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    sample = Sample((), "what?", videos=(tmp_path / "a.webp",), where="samples.jsonl:2")
    monkeypatch.setattr(encoder, "prompt", lambda sample: "<video>")
    with pytest.raises(SampleError, match=r"samples\.jsonl:2: the processor reads no videos"):
        encoder([sample])

    class Reads:
        video_processor = object()

        def __call__(self, **given):
            seen.append(given)
            return {"input_ids": torch.tensor([[3]])}

    seen: list[dict] = []
    monkeypatch.setattr(encoder, "processor", Reads())
    encoder([sample])
    encoder([sample], flip=True)
    assert "images" not in seen[0] and seen[0]["video_metadata"][0]["total_num_frames"] == 2
    assert seen[0]["videos"][0].shape == (2, 8, 8, 3) and (seen[0]["videos"][0][1, 0, 0] == (0, 0, 255)).all()


def test_settings_of_the_image_processor_are_passed_on_and_recorded(plain, some):
    changed = load(str(PLAIN), LoadOptions(processor=(("image_mean", [0.5, 0.5, 0.5]),)))
    encoder = Encoder(changed.processor, identify(changed.model, changed.id).visual_ids)
    known = Encoder(plain.processor, (3,)).settings()
    assert encoder.settings()["image_processor"]["image_mean"] == [0.5, 0.5, 0.5]
    assert "image_mean" in processor_differences(known, encoder.settings())[0]
    pixels, other = (e([some[0]])["pixel_values"] for e in (encoder, Encoder(plain.processor, (3,))))
    std = torch.tensor(known["image_processor"]["image_std"])[:, None, None]
    mean = torch.tensor(known["image_processor"]["image_mean"])[:, None, None]
    assert torch.allclose(pixels * std + 0.5, other * std + mean, atol=1e-5)
    with pytest.raises(InputError, match="no setting 'max_pixel'") as caught:
        load(str(PLAIN), LoadOptions(processor=(("max_pixel", 3),)))
    assert "crop_size" in caught.value.remedy


def test_flipping_turns_the_pixels_upside_down(encoder):
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 64, 32))
    sample = [Sample((image,), "what?")]
    upright, flipped = encoder(sample)["pixel_values"], encoder(sample, flip=True)["pixel_values"]
    assert torch.allclose(upright.flip(2), flipped, atol=1e-5) and not torch.allclose(upright, flipped)


def test_answers_come_back_as_text(encoder):
    ids = encoder.tokenizer(" yes", add_special_tokens=False)["input_ids"]
    assert encoder.decode(torch.tensor([[*ids, encoder.tokenizer.eos_token_id]])) == ["yes"]


def test_the_plain_processor_gives_what_the_models_own_gives(plain, some):
    own = plain.processor
    substitute = PlainProcessor(own.image_processor, own.tokenizer, plain.model.config, "nothing")
    substitute.tokenizer.chat_template = own.chat_template
    one, other = (Encoder(p, (3,))(some) for p in (own, substitute))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(InputError, match="2 image placeholders for 1 images"):
        substitute([[some[0].pictures()[0]]], ["<image> <image>"], return_tensors="pt")


def test_the_plain_processor_counts_merged_patches_and_refuses_what_it_does_not_know(plain, some):
    tokenizer, picture = plain.processor.tokenizer, some[0].pictures()[0]

    class Grid:
        def __call__(self, images, return_tensors):
            return {"pixel_values": torch.zeros(96, 8), "image_grid_thw": torch.tensor([[1, 8, 12]] * len(images))}

    config = AutoConfig.from_pretrained(PLAIN)
    config.vision_config.spatial_merge_size = 2
    found = PlainProcessor(Grid(), tokenizer, config, "nothing")([[picture]], ["<image>?"], return_tensors="pt")
    assert (found["input_ids"] == 3).sum() == 24 and torch.equal(
        found["mm_token_type_ids"], (found["input_ids"] == 3).long()
    )
    for name in ("pixel_values", "pixel_values_images"):
        pixels = {name: torch.zeros(5, 3, 8, 8)}
        tiles = PlainProcessor(lambda images, return_tensors, p=pixels: p, tokenizer, config, "num2words is required")
        with pytest.raises(UnsupportedModelError, match=r"cannot be built \(num2words is required\)"):
            tiles([[picture]], ["<image>?"], return_tensors="pt")


def test_the_plain_processor_cuts_and_marks_images_as_internvl_does(some):
    """Its processor always cuts into tiles, and writes a mark at both ends of an image's tokens."""
    processor = AutoProcessor.from_pretrained(PLAIN)
    tokenizer, picture = processor.tokenizer, some[0].pictures()[0]
    tokenizer.start_image_token, tokenizer.end_image_token = "<", ">"

    class Tiles:
        crop_to_patches = False

        def __call__(self, images, return_tensors, crop_to_patches):
            assert crop_to_patches
            return {"pixel_values": torch.zeros(3 + 1, 3, 8, 8), "num_patches": torch.tensor([3, 1])}

    config = AutoConfig.from_pretrained(PLAIN)
    config.image_seq_length = 2
    found = PlainProcessor(Tiles(), tokenizer, config, "nothing")([[picture, picture]], ["<image>a<image>?"])
    image = "<image>"
    assert found["input_ids"][0] == tokenizer(f"<{6 * image}>a<{2 * image}>?")["input_ids"]
    assert "num_patches" not in found  # the model takes no such argument


def test_a_processor_that_needs_torchvision_is_replaced(monkeypatch, some):
    class Needy:
        @staticmethod
        def from_pretrained(*args, **settings):
            raise ImportError("requires the Torchvision library")

    monkeypatch.setattr(loading, "AutoProcessor", Needy)
    found = load(str(PLAIN))
    assert isinstance(found.processor, PlainProcessor)
    # Without a chat template on the tokenizer the prompt is the image, a newline, the text.
    assert (Encoder(found.processor, (3,))(some)["input_ids"] == 3).sum(dim=1).tolist() == [144] * 6


def test_a_sample_without_visual_tokens_is_refused(encoder, some):
    with pytest.raises(SampleError, match="no visual token"):
        Encoder(encoder.processor, (5000,))(some)


def test_inputs_take_the_models_dtype(plain, encoder, some):
    moved = to_device(encoder(some), plain.model.to(torch.bfloat16))
    plain.model.to(torch.float32)
    assert moved["pixel_values"].dtype == torch.bfloat16 and moved["input_ids"].dtype == torch.int64


def test_a_language_model_is_refused(tmp_path):
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'llama' model, not a vision-language model"):
        load(str(tmp_path))


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_directory_is_refused_in_one_line(tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(PLAIN, folder)
    (folder / damage).unlink()
    with pytest.raises(InputError, match="cannot load") as caught:
        load(str(folder))
    assert "\n" not in str(caught.value) and "complete" in caught.value.remedy


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    shutil.copytree(PLAIN, tmp_path / "plain")
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    lost = next(name for name in weights if "vision" in name and name.endswith("fc1.weight"))
    save_file({name: x for name, x in weights.items() if name != lost}, tmp_path / "plain" / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match=r"lacks 1 of the model's weights, .*fc1\.weight"):
        load(str(tmp_path / "plain"))


def test_an_unknown_model_says_that_the_hub_is_switched_off(monkeypatch):
    with pytest.raises(InputError, match="cannot load owner/none") as caught:
        load("owner/none")
    assert "\n" not in str(caught.value)
    assert "HF_HUB_OFFLINE" in caught.value.remedy


@pytest.mark.parametrize("options", [{"dtype": "int3"}, {"device": "cuda:7"}, {"device": "toaster"}])
def test_arguments_that_make_no_sense(options):
    with pytest.raises(InputError):
        load(str(PLAIN), LoadOptions(**options))


def test_every_loading_option_of_the_command_line_reaches_the_model(monkeypatch):
    """One object from click to `load`, whichever verb reads it."""
    processor = (("size", {"height": 8}), ("resample", 2))
    shared = ["--dtype", "bfloat16", "--revision", "a-branch", "--trust-remote-code", "--attn-implementation", "eager",
              "--processor", 'size={"height": 8}', "--processor", "resample=2"]  # fmt: skip
    places = (  # of which only one can be given
        (["--device", "cpu"], LoadOptions("cpu", "bfloat16", "a-branch", True, "eager", None, processor)),
        (["--device-map", "auto"], LoadOptions("auto", "bfloat16", "a-branch", True, "eager", "auto", processor)),
    )

    class Seen(Exception):
        pass

    def stop(name, options, *more):
        raise Seen(options)

    monkeypatch.setattr("calibrate.inputs.load.load", stop)
    monkeypatch.setattr("calibrate.pipeline.run.load", stop)
    plan = str(Path(__file__).parents[2] / "reports/reference/plain/plan.json")
    image = str(next((reference_path("easy_vqa") / "images").rglob("*.png")))
    for verb in (["calibrate"], ["evaluate", plan], ["bench", plan], ["run", plan, "--image", image, "--prompt", "?"]):
        for place, given in places:
            found = CliRunner().invoke(cli, [*verb, *shared, *place])
            assert isinstance(found.exception, Seen) and found.exception.args == (given,), (verb, found.output)


def test_bundled_models_are_found_by_their_names(plain):
    assert load("reference/plain").id == plain.id == "reference/plain"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("reference/pretrained", r"has to be rebuilt first.*train\.pretrained rebuild"),
        ("reference/nothing", "no bundled model is called 'reference/nothing'"),
        ("reference/../../cli", "no bundled model is called"),
    ],
)
def test_bundled_names_that_are_no_models(name, says):
    with pytest.raises(InputError, match=says):
        load(name)


def test_the_pretrained_reference_is_found_where_rebuild_puts_it(tmp_path: Path, monkeypatch) -> None:
    """Any model stands in for it: it is named, and comes with samples of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PLAIN, tmp_path / REBUILT)
    assert load("reference/pretrained").id == "reference/pretrained"
    found = reference("reference/pretrained")
    assert found is not None
    assert len(load_samples(found.calibration)) == 640
    assert len(load_samples(found.evaluation)) == 1200
    assert reference("somebody/model") is None
