"""Hardware rows: dense peaks, bandwidth and memory, each with its source; and what was measured on a device.

Two traps of published tables: peaks with structured sparsity (twice the dense one), and gigabytes of 1024^3. Here
peaks are dense, and a gigabyte is 1e9 bytes.
"""

from __future__ import annotations

import functools
import json
import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner import extensions
from planner.cost.constants import Constants, EngineName
from planner.cost.parallel import Parallel
from planner.errors import ExtensionError, InputError, PlannerError, nearest
from planner.files import is_file, parse_json, read_text


class Hardware(BaseModel):
    """One device.

    Attributes:
        name: as tables show it.
        peak_tflops: dense peak in `dtype`, 1e12 FLOPs a second, a multiply-add counted as two.
        bandwidth_gbs: memory bandwidth, 1e9 bytes a second.
        memory_gb: memory, 1e9 bytes.
        dtype: of the peak.
        link_gbs: bandwidth to another such device, one direction, 1e9 bytes a second; 0 where none is known.
        asynchronous: the device works while the host prepares, as a GPU does, so that the longer of the two counts; on
            a CPU one follows the other.
        source: where the numbers are from.
        engine: what runs the model on it (`planner.cost.engine`).
        parallel: how many of it share a model.
        measured: what `plan bench --fit-hardware` found on the device; it takes the place of the engine's constants.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    peak_tflops: Annotated[float, Field(ge=1e-6, lt=1e6)]
    bandwidth_gbs: Annotated[float, Field(ge=1e-6, lt=1e6)]
    memory_gb: Annotated[float, Field(ge=1e-6, lt=1e6)]
    link_gbs: Annotated[float, Field(ge=0, lt=1e6)] = 0.0
    dtype: str = "bfloat16"
    asynchronous: bool = True
    source: str
    engine: EngineName = "hf"
    parallel: Parallel = Parallel()
    measured: Constants | None = None

    @property
    def doubts(self) -> tuple[str, ...]:
        """What looks wrong about the row: a peak far above the dense one known for a device of that name."""
        known = max(map(shipped_row, shipped_rows()), key=lambda row: _likeness(row.name, self.name))
        times = self.peak_tflops / known.peak_tflops
        if not _likeness(known.name, self.name) or times < 1.5:
            return ()
        return (
            f"{self.name}: {self.peak_tflops:g} TFLOP/s is {times:.1f} times the dense peak of {known.name} "
            f"({known.peak_tflops:g}); it looks like a peak with sparsity",
        )


def _likeness(known: str, name: str) -> int:
    """Words two device names share; none unless they share the model number, as in H100 or 4090."""
    words, others = (set(text.lower().replace("-", " ").replace("_", " ").split()) for text in (known, name))
    shared = words & others
    return len(shared) if any(any(letter.isdigit() for letter in word) for word in shared) else 0


def hardware(name: str | os.PathLike[str]) -> Hardware:
    """A row by name, shipped or of another package (`planner.extensions`), or a user's own JSON file.

    Raises:
        InputError: no such row or file, or a field is missing or absurd.
        ExtensionError: the package that adds the row is broken.
    """
    text = os.fspath(name)
    if text in shipped_rows():
        return shipped_row(text)
    added = extensions.added(extensions.HARDWARE)
    if text in added:
        where = f"{text}.json of the package {extensions.origin(extensions.HARDWARE, text)}"
        return _row(extensions.load_json(extensions.HARDWARE, text), where, ExtensionError)
    path = Path(text)
    if not is_file(path):
        known = rows()
        raise InputError(
            f"there is no hardware row or file '{text}'", f"{nearest(text, known)}Known: {', '.join(known)}"
        )
    remedy = "See `plan ls hardware` for what a row holds"
    return _row(parse_json(read_text(path), str(path), InputError, remedy), str(path))


def _row(values: Any, where: str, refusal: type[PlannerError] = InputError) -> Hardware:
    try:
        return Hardware.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the row"
        raise refusal(f"{where}: {field}: {first['msg']}", "A row is like those of `plan ls hardware`") from error


def rows() -> list[str]:
    """Names of all rows, those of other packages among them, sorted."""
    return sorted({*shipped_rows(), *extensions.added(extensions.HARDWARE)})


@functools.lru_cache(maxsize=1)
def shipped_rows() -> tuple[str, ...]:
    """Names of the shipped rows."""
    folder = resources.files("planner.profiles") / "hardware"
    return tuple(sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json")))


@functools.cache
def shipped_row(name: str) -> Hardware:
    """One of `shipped_rows`."""
    text = (resources.files("planner.profiles") / "hardware" / f"{name}.json").read_text()
    return _row(json.loads(text), name)
