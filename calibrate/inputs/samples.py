"""Samples to measure on: images, a prompt, and the answer where there is one.

Three sources: a JSONL file, a folder of images with one prompt, a `datasets` id with column names. Whatever the source,
a sample set is a fixed, ordered choice with a digest over what was chosen (image files and texts, never paths), so two
machines can tell whether they measured on the same data.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from calibrate.inputs.pictures import UnreadableImage, as_rgb, open_picture
from planner.errors import InputError, SampleError
from planner.files import is_file, is_folder, parse_json, read_text

#: A JSONL file beyond this is a mistake.
LARGEST_BYTES = 1 << 32
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
_LINE = 'Each line is {"image": PATH or [PATH, ...], "prompt": TEXT, "answer": TEXT or [TEXT, ...] (optional)}'


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        images: image files (or pictures already decoded), in the order the prompt shows them; at least one.
        prompt: the user's text, without image placeholders.
        answers: accepted answers; empty when unknown, then only agreement with the dense model can be measured.
        kind: question type for break-downs, or "".
        where: ``file:line`` or the like, for messages.
    """

    images: tuple[Path | Image.Image, ...]
    prompt: str
    answers: tuple[str, ...] = ()
    kind: str = ""
    where: str = field(default="", compare=False)

    def pictures(self) -> list[Image.Image]:
        """The images, decoded to RGB.

        Raises:
            SampleError: a file is not an image that can be decoded.
        """
        return [self._picture(image) for image in self.images]

    def _picture(self, image: Path | Image.Image) -> Image.Image:
        try:
            return as_rgb(image) if isinstance(image, Image.Image) else open_picture(image)
        except UnreadableImage as error:
            named = "the picture" if isinstance(image, Image.Image) else image
            cause = f"{self.where}: {named} is not an image that can be read ({error})"
            raise SampleError(cause, "Replace the file or remove the sample") from error

    def fingerprint(self) -> bytes:
        """SHA-256 over image content, prompt and answers.

        Raises:
            SampleError: an image file cannot be read.
        """
        total = hashlib.sha256(b"".join(self.image_digests))
        total.update(json.dumps([len(self.images), self.prompt, list(self.answers)]).encode())
        return total.digest()

    @cached_property
    def image_digests(self) -> tuple[bytes, ...]:
        """SHA-256 over each image's file, or its pixels where it has none.

        Raises:
            SampleError: an image file cannot be read.
        """
        return tuple(map(self._image_digest, self.images))

    @cached_property
    def question_digest(self) -> bytes:
        """SHA-256 over images and prompt, whatever the answer: what makes two samples the same question."""
        return hashlib.sha256(b"".join(self.image_digests) + self.prompt.strip().encode()).digest()

    def _image_digest(self, image: Path | Image.Image) -> bytes:
        if isinstance(image, Image.Image):
            return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()
        try:
            return hashlib.sha256(image.read_bytes()).digest()
        except OSError as error:
            cause = f"{self.where}: cannot read {image} ({error.strerror})"
            raise SampleError(cause, "Check the file") from error


@dataclass(frozen=True)
class SampleSet(Sequence[Sample]):
    """An ordered choice of samples; a sample's id is its position here."""

    samples: tuple[Sample, ...]
    source: str

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over the samples' fingerprints, in order.

        Raises:
            SampleError: an image file cannot be read.
        """
        total = hashlib.sha256()
        for sample in self.samples:
            total.update(sample.fingerprint())
        return total.hexdigest()

    @property
    def answered(self) -> bool:
        """True when every sample has an accepted answer."""
        return all(sample.answers for sample in self.samples)

    def choose(self, count: int | None, seed: int = 0) -> SampleSet:
        """`count` samples drawn and ordered by `seed`; all of them when `count` is None or there are no more.

        Raises:
            SampleError: `count` is below 1.
        """
        if count is not None and count < 1:
            raise SampleError(f"{count} samples were asked for", "Ask for at least one")
        count = min(count or len(self.samples), len(self.samples))
        chosen = random.Random(seed).sample(range(len(self.samples)), count)
        return SampleSet(tuple(self.samples[i] for i in chosen), self.source)

    def split(self, first: int) -> tuple[SampleSet, SampleSet]:
        """The first samples, and the others.

        Raises:
            SampleError: either part would be empty.
        """
        if not 0 < first < len(self.samples):
            raise SampleError(
                f"{len(self.samples)} samples cannot be split into a proposal split of {first} and a validation split",
                "Give more samples",
            )
        return SampleSet(self.samples[:first], self.source), SampleSet(self.samples[first:], self.source)


def check_answers(samples: SampleSet) -> None:
    """Refuse samples whose answers are not known.

    Raises:
        InputError: naming the first.
    """
    unknown = [sample for sample in samples if not sample.answers]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(samples)} samples have no accepted answer, "
            f"{unknown[0].where or 'the first'} for one: accuracy cannot be measured",
            "Add an 'answer' to each, or decide by agreement with the dense model (--goal agreement)",
        )


@dataclass(frozen=True)
class Columns:
    """Column names of a `datasets` data set."""

    image: str = "image"
    prompt: str = "prompt"
    answer: str = "answer"


def load_samples(
    data: str | Path, *, prompt: str | None = None, columns: Columns | None = None, split: str = "test"
) -> SampleSet:
    """Samples from a JSONL file, an image folder (with `prompt`), or a `datasets` id (with `columns` and `split`).

    Raises:
        SampleError: an entry cannot be used (file and line are named), or there is none.
        InputError: the source is none of the three, or `datasets` is not installed.
    """
    path = Path(data)
    if is_folder(path):
        found = _from_folder(path, prompt)
    elif is_file(path):
        found = _from_jsonl(path)
    elif path.suffix in (".jsonl", ".json") or path.is_absolute() or str(data).count("/") > 1:
        raise InputError(f"{data} does not exist", "Give a JSONL file, an image folder or a datasets id")
    else:
        found = _from_datasets(str(data), columns or Columns(), split)
    if not found:
        raise SampleError(f"{data} holds no samples", _LINE)
    return SampleSet(tuple(found), str(data))


def _from_jsonl(path: Path) -> list[Sample]:
    # Not splitlines: a separator that Unicode knows may stand inside a JSON text.
    lines = read_text(path, LARGEST_BYTES).split("\n")
    return [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, path: Path, number: int) -> Sample:
    where = f"{path}:{number}"
    entry = parse_json(line, where, SampleError, _LINE)
    if not isinstance(entry, dict):
        raise SampleError(f"{where}: not a JSON object", _LINE)
    names = _texts(entry.get("image"), "image", where)
    if not names:
        raise SampleError(f"{where}: no 'image'", _LINE)
    if not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise SampleError(f"{where}: no 'prompt'", _LINE)
    images = tuple(path.parent / name for name in names)
    for image in images:
        if not is_file(image):
            raise SampleError(f"{where}: the image {image} does not exist", "Paths are relative to the JSONL file")
    answers = _texts(entry.get("answer"), "answer", where)
    kind = entry.get("kind", entry.get("type", ""))
    return Sample(images, entry["prompt"], answers, str(kind), where)


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """A text or a list of texts; nothing for None."""
    values: Iterable[Any] = () if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) and v for v in values):
        raise SampleError(f"{where}: '{name}' must be a text or a list of texts", _LINE)
    return tuple(values)


def _from_folder(path: Path, prompt: str | None) -> list[Sample]:
    if not prompt or not prompt.strip():
        raise SampleError(f"{path} is an image folder and no prompt was given", "Give the prompt to ask of each image")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    return [Sample((file,), prompt, where=str(file)) for file in files]


def _from_datasets(name: str, columns: Columns, split: str) -> list[Sample]:
    try:
        import datasets
    except ImportError as error:
        cause = f"{name} is neither a file nor a folder, and reading it as a datasets id needs the package 'datasets'"
        raise InputError(cause, "Check the path, or `pip install datasets`") from error
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds; all mean that the set cannot be had
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        cause = f"cannot load the data set {name} (split {split}): {reason}"
        raise InputError(cause, "Check its id and split, or give a JSONL file") from error
    missing = {columns.image, columns.prompt} - set(rows.column_names)
    if missing:
        has = ", ".join(rows.column_names)
        cause = f"the data set {name} has no column {', '.join(sorted(missing))} (it has {has})"
        raise SampleError(cause, "Name the columns to use")
    return [_from_row(row, columns, f"{name}[{split}]:{number}") for number, row in enumerate(rows)]


def _from_row(row: dict[str, Any], columns: Columns, where: str) -> Sample:
    images = row[columns.image]
    images = images if isinstance(images, (list, tuple)) else [images]
    if not images or not all(isinstance(image, Image.Image) for image in images):
        raise SampleError(f"{where}: the column '{columns.image}' does not hold images", "Name the image column")
    answers = _texts(row.get(columns.answer), columns.answer, where)
    return Sample(tuple(images), str(row[columns.prompt]), answers, where=where)
