"""The page about samples: its examples are read, what it says is refused is refused, its options exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calibrate.inputs.encode import PIXEL_SETTINGS
from calibrate.inputs.samples import load_samples
from calibrate.inputs.videos import MOST_FRAMES
from planner.cli.calibrate import command as calibrate
from planner.errors import SampleError

PAGE = (Path(__file__).parents[2] / "docs" / "samples.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```json\n(.+?)```$", PAGE, re.MULTILINE | re.DOTALL)
REFUSED = re.findall(r"^\| `(\{.+?\})` \| (.+?) \|$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every file that an example names; videos hold nothing, since reading a line does not open them."""
    for name in ("images/12.png", "images/door.png", "left.jpg", "right.jpg", "cup.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / name)
    for name in ("clips/door.mp4", "clips/door.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, text: str) -> Any:
    path = folder / "samples.jsonl"
    path.write_text(text, encoding="utf-8")
    return load_samples(path)


def shown(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def parts_of(entry: dict[str, Any]) -> list[dict[str, str]]:
    """What is shown and said, in order."""
    if "messages" not in entry:
        files = [{"type": kind, kind: name} for kind in ("image", "video") for name in shown(entry.get(kind))]
        return [*files, {"type": "text", "text": entry["prompt"]}]
    contents = [message["content"] for message in entry["messages"]]
    return [part for one in contents for part in (one if isinstance(one, list) else [{"type": "text", "text": one}])]


def test_examples_are_read_as_they_are_meant(folder: Path) -> None:
    lines = "".join(EXAMPLES).splitlines()
    assert len(lines) > 8
    for entry, sample in zip(map(json.loads, lines), read(folder, "".join(EXAMPLES)), strict=True):
        parts = parts_of(entry)
        names = {kind: [folder / part[kind] for part in parts if part["type"] == kind] for kind in ("image", "video")}
        assert [*sample.images] == names["image"] and [*sample.videos] == names["video"]
        said = [part for turn in sample.conversation() for part in turn["content"]]
        assert said == [part if part["type"] == "text" else {"type": part["type"]} for part in parts]
        assert sample.prompt == parts[-1]["text"]
        assert [*sample.answers] == shown(entry.get("answer"))
        assert (sample.kind, sample.object_size) == (entry.get("kind", ""), entry.get("object_size", 0))
        sample.pictures()
    fields = {key for line in lines for key in json.loads(line)}
    assert fields == set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)), "the table's fields, an example of each"


@pytest.mark.parametrize(("line", "because"), REFUSED)
def test_what_is_refused(folder: Path, line: str, because: str) -> None:
    with pytest.raises(SampleError, match=re.escape(because)) as caught:
        read(folder, line)
    assert "samples.jsonl:1" in str(caught.value)


def test_other_names_and_other_fields(folder: Path) -> None:
    line = '{"image": "cup.png", "prompt": "What is it?", "answers": ["cup"], "type": "object", "id": 7}'
    sample = read(folder, f"\n{line}\n")[0]
    assert "`answers` and `type`" in PAGE and (sample.answers, sample.kind) == (("cup",), "object")


def test_options_and_settings_exist() -> None:
    options = {option for parameter in calibrate.params for option in parameter.opts}
    assert len(REFUSED) == 8
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= options
    changed = set(re.findall(r"--processor '?(\w+)=", PAGE)) - {"KEY"}
    assert len(changed) == 3 and changed <= PIXEL_SETTINGS
    assert f"of long ones {MOST_FRAMES} frames" in PAGE
