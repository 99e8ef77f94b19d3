"""The rows of a calibration on disk: what `--resume` reads, what shards hand over, what `plan merge` unites.

A state is one safetensors file, written whole or not at all: tables of all probes, and a header that says what was
measured (model, samples, settings). States with different headers are never united.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from calibrate.probes.base import Probe
from calibrate.probes.stats import Array, SampleTable
from planner.document import write_atomic
from planner.errors import CalibrationError, InputError
from planner.files import parse_json
from planner.profile import processor_differences
from planner.weights import Weights, compare

SUFFIX = ".state.safetensors"
_REMEDY = "The file was kept. Move it away to measure again, or restore it"


def tables(probes: Mapping[str, Probe]) -> dict[str, Array]:
    """All rows as named arrays, ``probe/column.data`` and so on."""
    return {
        f"{name}/{column}": np.ascontiguousarray(array)
        for name, probe in probes.items()
        for column, array in probe.table.arrays().items()
    }


def save_state(path: Path, header: Mapping[str, Any], probes: Mapping[str, Probe]) -> None:
    """Write rows and header atomically.

    Raises:
        InputError: the place cannot be written.
    """
    arrays = tables(probes)
    text = json.dumps(header, sort_keys=True)
    write_atomic(path, save(arrays, {"header": text, "sha256": _digest(text, arrays)}))


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, SampleTable]]:
    """Header and tables by probe name.

    Raises:
        InputError: the file cannot be read.
        CalibrationError: it is damaged; it is left as it is.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "Check the path") from error
    try:
        arrays = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        header = parse_json(metadata["header"], str(path), CalibrationError, _REMEDY)
        if not isinstance(header, dict) or not {"model", "samples", "probes", "settings"} <= set(header):
            raise CalibrationError(f"{path} does not say what was measured", _REMEDY)
        intact = metadata["sha256"] == _digest(metadata["header"], arrays)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{path} is not a readable calibration state ({error})", _REMEDY) from error
    if not intact:
        raise CalibrationError(f"{path} is damaged: its content does not fit its digest", _REMEDY)
    by_probe: dict[str, dict[str, Array]] = {}
    try:
        for name, array in arrays.items():
            probe, column = name.split("/", 1)
            by_probe.setdefault(probe, {})[column] = array
        return header, {probe: SampleTable.from_arrays(columns) for probe, columns in by_probe.items()}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:  # whole, and written by someone else
        raise CalibrationError(f"{path} holds no rows of a calibration ({error})", _REMEDY) from error


def absorb(probes: Mapping[str, Probe], found: Mapping[str, SampleTable]) -> None:
    """Merge loaded tables into probes of the same names; others are left out."""
    for name, table in found.items():
        if name in probes:
            probes[name].table.merge(table)


def check_headers(headers: Iterable[tuple[Path, Mapping[str, Any]]], expected: Mapping[str, Any]) -> None:
    """Refuse states of another run.

    Raises:
        CalibrationError: naming the file and what differs.
    """
    for path, header in headers:
        different = [what for key in expected for what in _differences(key, header.get(key), expected[key])]
        if different:
            raise CalibrationError(
                f"{path} belongs to another run: {', '.join(different)} differ",
                "Use another --output folder, or the same model, samples and settings",
            )


def shared_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header in which two processes of one run agree to the last digit, on whatever devices they are."""
    model = dict(header["model"])
    weights = model.pop("weights", None)
    return {
        **header,
        "model": {**model, "weights": None if weights is None else Weights.model_validate(weights).digest},
    }


def _differences(key: str, one: Any, other: Any) -> list[str]:
    if one == other:
        return []
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [key]
    if key == "processor":
        return processor_differences(one, other) or [key]
    if key != "model":
        return [key]
    names = [name for name in {**one, **other} if name != "weights" and one.get(name) != other.get(name)]
    found = ["model"] if names else []
    try:
        ours, theirs = (Weights.model_validate(header["weights"]) for header in (one, other))
    except (KeyError, ValidationError):  # of before there was a fingerprint, or damaged
        return found or ["model (one has no fingerprint of its weights)"]
    reason = compare(ours, theirs).reason
    return found + ([f"weights ({reason})"] if reason else [])


def _digest(header: str, arrays: Mapping[str, Array]) -> str:
    total = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name}:{array.dtype}:{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
