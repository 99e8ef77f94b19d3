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
from safetensors import SafetensorError
from safetensors.numpy import load, save

from calibrate.probes.base import Probe
from calibrate.probes.stats import Array, SampleTable
from planner.document import write_atomic
from planner.errors import CalibrationError, InputError

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
        header = json.loads(metadata["header"])
        intact = metadata["sha256"] == _digest(metadata["header"], arrays)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{path} is not a readable calibration state ({error})", _REMEDY) from error
    if not intact:
        raise CalibrationError(f"{path} is damaged: its content does not fit its digest", _REMEDY)
    by_probe: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        probe, column = name.split("/", 1)
        by_probe.setdefault(probe, {})[column] = array
    return header, {probe: SampleTable.from_arrays(columns) for probe, columns in by_probe.items()}


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
        different = [key for key in expected if header.get(key) != expected[key]]
        if different:
            raise CalibrationError(
                f"{path} belongs to another run: {', '.join(different)} differ",
                "Use another --out folder, or the same model, samples and settings",
            )


def _digest(header: str, arrays: Mapping[str, Array]) -> str:
    total = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name}:{array.dtype}:{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
