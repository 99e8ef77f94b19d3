"""Samples of a JSONL file: a line is a question about images or videos, or a conversation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from calibrate.inputs import conversation
from calibrate.inputs.conversation import Turn
from calibrate.inputs.sample import Sample
from planner.errors import SampleError
from planner.files import is_file, parse_json, read_text

#: A file beyond this is a mistake.
LARGEST_BYTES = 1 << 32
LINE = (
    'Each line is {"image": PATH or [PATH, ...], "prompt": TEXT} or {"messages": [MESSAGE, ...]}, and may have '
    '"video": PATH or [PATH, ...], "answer": TEXT or [TEXT, ...] and "kind": TEXT'
)


def read_jsonl(path: Path) -> list[Sample]:
    """The samples of a JSONL file.

    Raises:
        SampleError: a line cannot be used; file and line are named.
    """
    # Not splitlines: a separator that Unicode knows may stand inside a JSON text.
    lines = read_text(path, LARGEST_BYTES).split("\n")
    return [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, path: Path, number: int) -> Sample:
    where = f"{path}:{number}"
    entry = parse_json(line, where, SampleError, LINE)
    if not isinstance(entry, dict):
        raise SampleError(f"{where}: not a JSON object", LINE)
    turns: tuple[Turn, ...] = ()
    if "messages" in entry:
        turns, names, films, prompt = _talk(entry, where)
    else:
        names, films = (texts(entry.get(name), name, where) for name in ("image", "video"))
        prompt = _prompt(entry, where)
    if not names and not films:
        raise SampleError(f"{where}: no 'image'", LINE)
    images, videos = (tuple(path.parent / name for name in files) for files in (names, films))
    for file in (*images, *videos):
        if not is_file(file):
            what = "image" if file in images else "video"
            raise SampleError(f"{where}: the {what} {file} does not exist", "Paths are relative to the JSONL file")
    answers = texts(entry.get("answer", entry.get("answers")), "answer", where)
    kind = entry.get("kind", entry.get("type", ""))
    return Sample(images, prompt, answers, str(kind), where, videos, turns, _size(entry, where))


def _size(entry: dict[str, Any], where: str) -> float:
    """Size of what is asked for; 0 where it is not stated."""
    size = entry.get("object_size", 0)
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < 1e12:
        raise SampleError(f"{where}: 'object_size' must be a number, not below 0", LINE)
    return float(size)


def _prompt(entry: dict[str, Any], where: str) -> str:
    prompt = entry.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise SampleError(f"{where}: no 'prompt'", LINE)
    return prompt


def _talk(entry: dict[str, Any], where: str) -> tuple[tuple[Turn, ...], tuple[str, ...], tuple[str, ...], str]:
    """Turns, images, videos and the last text of a line with messages."""
    doubled = sorted({"image", "video", "prompt"} & set(entry))
    if doubled:
        raise SampleError(f"{where}: both 'messages' and '{doubled[0]}'", "Put pictures and text into the messages")
    try:
        turns = conversation.read(entry["messages"])
    except conversation.Malformed as error:
        raise SampleError(f"{where}: {error}", conversation.FORM) from error
    images, videos = conversation.files(turns, "image"), conversation.files(turns, "video")
    return turns, images, videos, conversation.question(turns)


def texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """A text or a list of texts; nothing for None.

    Raises:
        SampleError: it is neither.
    """
    values: Iterable[Any] = () if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) and v for v in values):
        raise SampleError(f"{where}: '{name}' must be a text or a list of texts", LINE)
    return tuple(values)
