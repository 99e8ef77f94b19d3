"""Samples to measure on: images, a prompt, and the answer where there is one.

Three sources: a JSONL file (a line is a question about images, or a conversation), a folder of images with one prompt,
a `datasets` id with column names. Whatever the source, a sample set is a fixed, ordered choice with a digest over what
was chosen (image files and texts, never paths), so two machines can tell whether they measured on the same data.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from calibrate.inputs.jsonl import LINE, read_jsonl, texts
from calibrate.inputs.sample import Sample
from planner.errors import InputError, SampleError
from planner.files import is_file, is_folder

__all__ = ["Columns", "Sample", "SampleSet", "load_samples"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


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

        Fewer than all are spread over the pictures: no picture is asked about twice before each is asked about once,
        since samples about one picture are not independent and a proof counts one of them.

        Raises:
            SampleError: `count` is below 1.
        """
        if count is not None and count < 1:
            raise SampleError(f"{count} samples were asked for", "Ask for at least one")
        drawn = random.Random(seed).sample(self.samples, len(self.samples))
        if count is not None and count < len(drawn):
            asked: Counter[tuple[str | int, ...]] = Counter()
            turns = []
            for sample in drawn:
                pictures = tuple(str(image) if isinstance(image, Path) else id(image) for image in sample.images)
                turns.append(asked[pictures])
                asked[pictures] += 1
            drawn = [drawn[i] for i in sorted(range(len(drawn)), key=turns.__getitem__)[:count]]
        return SampleSet(tuple(drawn), self.source)


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
    kind: str = "kind"


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
        found = read_jsonl(path)
    elif path.suffix in (".jsonl", ".json") or path.is_absolute() or str(data).count("/") > 1:
        raise InputError(f"{data} does not exist", "Give a JSONL file, an image folder or a datasets id")
    else:
        found = _from_datasets(str(data), columns or Columns(), split)
    if not found:
        raise SampleError(f"{data} holds no samples", LINE)
    return SampleSet(tuple(found), str(data))


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
    answers = texts(row.get(columns.answer), columns.answer, where)
    kind = row.get(columns.kind) or ""
    return Sample(tuple(images), str(row[columns.prompt]), answers, str(kind), where)
