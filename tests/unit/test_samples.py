"""Samples: what is read, what is refused (with file and line), what a seed and a digest promise."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from calibrate.inputs.answers import matches, normalise
from calibrate.inputs.samples import Columns, Sample, SampleSet, load_samples
from planner.errors import InputError, SampleError


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("c.jpg", "green")):
        Image.new("RGB", (4, 3), colour).save(tmp_path / name)
    return tmp_path


def write(folder, *entries):
    path = folder / "samples.jsonl"
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries))
    return path


def test_jsonl_with_one_and_several_images_and_answers(folder):
    path = write(
        folder,
        {"image": "a.png", "prompt": "what?", "answer": "red", "kind": "color"},
        "",
        {"image": ["a.png", "b.png"], "prompt": "same?", "answer": ["no", "different"]},
        {"image": "b.png", "prompt": "describe"},
    )
    samples = load_samples(path)
    assert [len(s.images) for s in samples] == [1, 2, 1]
    assert [s.answers for s in samples] == [("red",), ("no", "different"), ()]
    assert samples[0].kind == "color" and not samples.answered
    assert samples[2].where.endswith("samples.jsonl:4"), "empty lines count"
    assert samples[1].pictures()[1].getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ({"prompt": "x"}, "no 'image'"),
        ({"image": "a.png"}, "no 'prompt'"),
        ({"image": "a.png", "prompt": "  "}, "no 'prompt'"),
        ({"image": "gone.png", "prompt": "x"}, "gone.png does not exist"),
        ({"image": 3, "prompt": "x"}, "'image' must be a text"),
        ({"image": "a.png", "prompt": "x", "answer": 4}, "'answer' must be a text"),
    ],
)
def test_a_bad_line_is_named(folder, line, says):
    path = write(folder, {"image": "a.png", "prompt": "fine"}, line)
    with pytest.raises(SampleError, match=says) as caught:
        load_samples(path)
    assert "samples.jsonl:2" in str(caught.value)
    assert caught.value.remedy


def test_an_empty_set_and_a_missing_file(folder):
    with pytest.raises(SampleError, match="no samples"):
        load_samples(write(folder, ""))
    with pytest.raises(InputError, match="does not exist"):
        load_samples(folder / "none.jsonl")
    (folder / "empty").mkdir()
    with pytest.raises(SampleError, match="no samples"):
        load_samples(folder / "empty", prompt="x")


def test_a_file_that_is_no_image_is_named_when_it_is_read(folder):
    (folder / "fake.png").write_text("not a picture")
    sample = load_samples(write(folder, {"image": "fake.png", "prompt": "x"}))[0]
    with pytest.raises(SampleError, match=r"samples\.jsonl:1.*fake\.png"):
        sample.pictures()


def test_image_folder_needs_a_prompt_and_is_sorted(folder):
    with pytest.raises(SampleError, match="no prompt"):
        load_samples(folder)
    samples = load_samples(folder, prompt="describe")
    assert [s.images[0].name for s in samples] == ["a.png", "b.png", "c.jpg"]
    assert {s.prompt for s in samples} == {"describe"}


def test_choice_follows_the_seed(folder):
    samples = load_samples(write(folder, *({"image": "a.png", "prompt": f"q{i}"} for i in range(20))))
    chosen = samples.choose(8, seed=3)
    assert chosen == samples.choose(8, seed=3) and chosen != samples.choose(8, seed=4)
    assert len({s.prompt for s in chosen}) == 8
    assert sorted(s.prompt for s in samples.choose(None)) == sorted(s.prompt for s in samples.choose(99))
    assert samples.choose(None, seed=1) != samples.choose(None, seed=2), "the order follows the seed, too"
    with pytest.raises(SampleError, match="at least one"):
        samples.choose(0)


def test_a_choice_asks_about_every_picture_before_it_asks_twice(folder):
    asked = [{"image": name, "prompt": f"{name} {i}"} for name in ("a.png", "b.png", "c.jpg") for i in range(5)]
    samples = load_samples(write(folder, *asked))
    for seed in range(5):
        pictures = [s.images[0].name for s in samples.choose(8, seed)]
        assert len(set(pictures[:3])) == len(set(pictures[3:6])) == 3 and len(set(pictures[6:])) == 2
    decoded = Image.new("RGB", (4, 4))  # a data set's pictures have no path
    held = SampleSet(tuple(Sample((decoded,), f"q{i}") for i in range(4)), "a data set")
    assert len(held.choose(2)) == 2


def test_digest_is_of_content_not_of_paths(folder, tmp_path_factory):
    entries = [{"image": "a.png", "prompt": "x", "answer": "red"}, {"image": "b.png", "prompt": "y"}]
    digest = load_samples(write(folder, *entries)).digest
    other = tmp_path_factory.mktemp("other")
    for name in ("a.png", "b.png"):
        (other / name).write_bytes((folder / name).read_bytes())
    assert load_samples(write(other, *entries)).digest == digest
    assert load_samples(write(other, *entries[::-1])).digest != digest, "order is part of it"
    assert load_samples(write(other, {**entries[0], "answer": "no"}, entries[1])).digest != digest
    Image.new("RGB", (4, 3), "black").save(other / "a.png")
    assert load_samples(write(other, *entries)).digest != digest


class Rows(list):
    column_names = ("picture", "question", "answers")


def test_a_datasets_id_by_column_names(monkeypatch):
    rows = Rows([{"picture": Image.new("RGB", (2, 2)), "question": "q?", "answers": ["a", "b"]}])
    calls = []

    def load_dataset(name, split):
        calls.append((name, split))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    samples = load_samples("owner/set", columns=Columns("picture", "question", "answers"), split="validation")
    assert calls == [("owner/set", "validation")]
    assert samples[0].answers == ("a", "b") and samples[0].prompt == "q?"
    assert samples[0].pictures()[0].size == (2, 2) and len(samples.digest) == 64
    with pytest.raises(SampleError, match="no column image, prompt"):
        load_samples("owner/set")


def test_a_datasets_id_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="datasets") as caught:
        load_samples("owner/set")
    assert "pip install datasets" in caught.value.remedy


@pytest.mark.parametrize(
    ("generated", "accepted", "right"),
    [
        ("Yes, there is.", "yes", True),
        ("yesterday", "yes", False),
        ("a red circle", "Red Circle", True),
        ("red", "red circle", False),
        ("Two dogs", "2", True),
        ("1,000", "1000", True),
        ("it's fine", "it's", True),
        ("", "yes", False),
        ("no", ("yes", "no"), True),
        ("A.", "a", True),
        ("3.5 metres", "3.5", True),
        ("the answer: blue", "answer blue", True),
    ],
)
def test_answer_matching(generated, accepted, right):
    assert matches(generated, accepted) is right


def test_normalisation_is_what_the_rule_says():
    assert normalise("The two Cats, an owl!") == ["2", "cats", "owl"]


def moving(path, colours, duration=250):
    """An animated picture whose upper half is black."""
    frames = [Image.new("RGB", (4, 4), colour) for colour in colours]
    for frame in frames:
        frame.paste((0, 0, 0), (0, 0, 4, 2))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, lossless=True)


TALK = [
    {"role": "system", "content": "One word."},
    {"role": "user", "content": [{"type": "text", "text": "This"}, {"type": "image", "image": "a.png"},
                                 {"type": "text", "text": "or this"}, {"type": "image", "path": "b.png"}]},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "And now?"},
]  # fmt: skip


def test_conversations_keep_their_order(folder):
    first, plain = load_samples(
        write(
            folder,
            {"messages": TALK, "answers": ["blue", "Blue."], "kind": "colour"},
            {"image": "a.png", "prompt": "And now?"},
        )
    )
    assert [path.name for path in first.images] == ["a.png", "b.png"]
    assert (first.prompt, first.answers, first.kind) == ("And now?", ("blue", "Blue."), "colour")
    said = first.conversation()
    assert [turn["role"] for turn in said] == ["system", "user", "assistant", "user"]
    assert said[1]["content"] == [
        {"type": "text", "text": "This"}, {"type": "image"}, {"type": "text", "text": "or this"}, {"type": "image"},
    ]  # fmt: skip
    # What replaces the prompt (a context before it) replaces the last text alone.
    longer = replace(first, prompt="More words. And now?").conversation()
    assert longer[:3] == said[:3] and longer[3]["content"] == [{"type": "text", "text": "More words. And now?"}]
    assert plain.conversation() == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And now?"}]}
    ]


def test_what_was_said_before_is_part_of_the_question(folder):
    other = [{"role": "system", "content": "Two words."}, *TALK[1:]]
    path = write(folder, {"messages": TALK}, {"messages": TALK}, {"messages": other})
    one, same, different = load_samples(path)
    assert one.question_digest == same.question_digest != different.question_digest
    assert one.fingerprint() == same.fingerprint() != different.fingerprint()


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("hello", "no|not a list"),
        ([], "not a list of messages"),
        ([*TALK, {"role": "assistant", "content": "x"}], "last message must be the user's"),
        ([*TALK[:1], {"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "hold text"),
        ([{"role": "tool", "content": "x"}], "the role 'tool'"),
        ([{"content": "x"}], "no 'role'"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a"}]}], "the type 'audio'"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "no 'image'"),
        ([{"role": "user", "content": []}], "no content"),
        ([{"role": "user", "content": "no picture"}], "no 'image'"),
    ],
)
def test_a_malformed_conversation_is_named(folder, messages, says):
    with pytest.raises(SampleError, match=says) as caught:
        load_samples(write(folder, {"messages": messages}))
    assert "samples.jsonl:1" in str(caught.value)


def test_messages_and_a_prompt_exclude_each_other(folder):
    with pytest.raises(SampleError, match="both 'messages' and 'image'"):
        load_samples(write(folder, {"messages": TALK, "image": "a.png"}))


def test_an_animation_is_read_with_its_speed(folder):
    moving(folder / "film.webp", ["red", "blue", "lime"])
    (sample,) = load_samples(write(folder, {"video": "film.webp", "prompt": "what happens?"}))
    assert sample.conversation()[0]["content"][0] == {"type": "video"} and not sample.images
    (clip,) = sample.clips()
    assert clip.frames.shape == (3, 4, 4, 3) and clip.fps == 4
    assert [tuple(frame[3, 0]) for frame in clip.frames] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert [tuple(frame[0, 0]) for frame in clip.flipped().frames] == [tuple(frame[3, 0]) for frame in clip.frames]
    assert clip.metadata()["duration"] == 0.75
    moving(folder / "other.webp", ["red", "blue", "white"])
    (other,) = load_samples(write(folder, {"video": "other.webp", "prompt": "what happens?"}))
    assert other.question_digest != sample.question_digest


def test_long_videos_are_read_evenly(folder, monkeypatch):
    monkeypatch.setattr("calibrate.inputs.videos.MOST_FRAMES", 3)
    moving(folder / "long.webp", ["red", "blue", "lime", "white", "red"], duration=100)
    (clip,) = load_samples(write(folder, {"video": "long.webp", "prompt": "x"}))[0].clips()
    assert [tuple(frame[3, 0]) for frame in clip.frames] == [(255, 0, 0), (0, 255, 0), (255, 0, 0)]
    assert clip.fps == 6, "three frames stand for half a second"


def test_films_are_read_by_what_is_installed(folder, monkeypatch):
    (folder / "film.mp4").write_bytes(b"x")
    (sample,) = load_samples(write(folder, {"video": "film.mp4", "prompt": "x"}))
    tried = []

    def load_video(path, backend, sample_indices_fn):
        tried.append(backend)
        if backend != "opencv":
            raise ImportError(backend)
        metadata = types.SimpleNamespace(total_num_frames=512, fps=30.0)
        return np.zeros((len(sample_indices_fn(metadata)), 2, 2, 3), np.uint8), metadata

    monkeypatch.setattr("transformers.video_utils.load_video", load_video)
    (clip,) = sample.clips()
    assert tried[-1] == "opencv" and len(clip.frames) == 256 and clip.fps == 15
    monkeypatch.setattr("transformers.video_utils.load_video", lambda *a, **k: (_ for _ in ()).throw(ImportError("no")))
    with pytest.raises(SampleError, match="no package that decodes films"):
        sample.clips()


def test_a_video_that_cannot_be_read_is_named(folder):
    (folder / "film.gif").write_text("no film")
    (sample,) = load_samples(write(folder, {"video": "film.gif", "prompt": "x"}))
    with pytest.raises(SampleError, match=r"samples\.jsonl:1.*film\.gif cannot be read"):
        sample.clips()
    with pytest.raises(SampleError, match=r"the video .*gone\.mp4 does not exist"):
        load_samples(write(folder, {"video": "gone.mp4", "prompt": "x"}))


def test_pictures_are_turned_as_their_exif_says(folder):
    picture = Image.new("RGB", (4, 2), "red")
    picture.paste((0, 0, 255), (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn clockwise
    picture.save(folder / "turned.png", exif=exif)
    (sample,) = load_samples(write(folder, {"image": "turned.png", "prompt": "x"}))
    (upright,) = sample.pictures()
    assert (
        upright.size == (2, 4) and upright.getpixel((0, 0)) == (0, 0, 255) and upright.getpixel((0, 3)) == (255, 0, 0)
    )


def test_the_size_of_what_is_asked_for_is_read_and_checked(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    path = tmp_path / "samples.jsonl"

    def read(**stated):
        path.write_text(json.dumps({"image": "a.png", "prompt": "What?", **stated}))
        return load_samples(path)[0].object_size

    assert read() == 0 and read(object_size=48) == 48 and read(object_size=0.25) == 0.25
    for wrong in ("large", True, -1, None, [3]):
        with pytest.raises(SampleError, match="'object_size' must be a number"):
            read(object_size=wrong)
