"""Which weights a profile, a state or a plan belongs to: a fingerprint of every tensor, and when two of them match.

Per tensor the fingerprint holds a hash of its name and shape, the smallest and the largest of all its values, the
root mean square of some 65,000 of them in evenly spread runs, and `SAMPLES` values, evenly spread: 34 bytes, some 32 kB
of JSON for a model of 7 B parameters. `planner.runtime.model.weights` takes it.

Two fingerprints match if, tensor by tensor, all of these differ by no more than the number formats account for:

- float32, bfloat16, float16: rounding to the coarser of the two formats, so training, noise, layers exchanged or a
  merged adapter are seen as soon as one sampled value moves by more than that.
- one of the two quantised to 8 or 4 bits: values may be off by a part of the tensor's root mean square, and the median
  tensor by no more than quantisation explains. Tensors that only their own kernel can read are left out.

Not seen: a change of few elements of a tensor that meets none of those looked at and is no new extreme; a change
smaller than the rounding of a number format, or than quantisation. ``--full-digest`` sees every bit; it tells copies in
one format apart, and is left out between formats.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

#: Values looked at in each tensor.
SAMPLES = 4
_ROW = np.dtype([("name", "S6"), ("rms", "<f4"), ("low", "<f4"), ("high", "<f4"), ("values", "<f4", (SAMPLES,))])
#: Number format -> relative rounding of a value, with room for a second rounding on the way.
_ROUNDING = {"float64": 2.0**-21, "float32": 2.0**-21, "float16": 2.0**-10, "bfloat16": 2.0**-8}
#: Smallest steps of float16, which ends at 6e-8.
_STEP = {"float16": 2.0**-24}
#: Bits of a quantised weight -> what the median and any one tensor may be off by, in root mean squares; and norms.
_QUANTISED = {8: (0.04, 0.5, 0.05), 4: (0.25, 1.0, 0.25)}
#: A comparison that sees less than this share of the tensors is none.
_LEAST_SHARE = 0.1


class TensorFacts(NamedTuple):
    """One tensor: root mean square of the runs, smallest and largest value of all, sampled values."""

    rms: float
    low: float
    high: float
    values: Sequence[float]


class Weights(BaseModel):
    """A fingerprint of all weights.

    Attributes:
        dtype: number format of most weights, ``int8`` or ``int4`` where they are quantised.
        tensors: how many.
        table: a row per tensor, base64; see `rows`.
        full_sha256: digest over all bytes, where it was asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dtype: str
    tensors: Annotated[int, Field(ge=1, le=1 << 20)]
    table: str
    full_sha256: str | None = None

    @field_validator("table")
    @classmethod
    def _readable(cls, table: str) -> str:
        try:
            found = base64.b64decode(table, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"the table of weights is not base64 ({error})") from error
        if len(found) % _ROW.itemsize:
            raise ValueError("the table of weights is cut off")
        return table

    @classmethod
    def of(cls, dtype: str, rows: Mapping[str, TensorFacts], full: str | None = None) -> Weights:
        """Build one.

        Args:
            rows: by name and shape, as `label` spells them.
        """
        table = np.zeros(len(rows), _ROW)
        for row, (name, found) in zip(table, rows.items(), strict=True):
            row["name"], row["rms"], row["low"], row["high"] = hashed(name), *found[:3]
            row["values"][: len(found.values)] = found.values
        return cls(
            dtype=dtype,
            tensors=len(rows),
            table=base64.b64encode(np.sort(table, order="name").tobytes()).decode(),
            full_sha256=full,
        )

    @property
    def rows(self) -> NDArray[Any]:
        """``name`` (6 bytes of SHA-256), ``rms``, ``low``, ``high``, ``values [SAMPLES]`` of each tensor, by name."""
        return np.frombuffer(base64.b64decode(self.table), _ROW)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, extremes and sampled values: the same on every device (sums may differ in a last bit)."""
        found = hashlib.sha256(self.dtype.encode())
        for column in ("name", "low", "high", "values"):
            found.update(np.ascontiguousarray(self.rows[column]).tobytes())
        return found.hexdigest()


def label(name: str, shape: Sequence[int]) -> str:
    """How a tensor is called in a fingerprint."""
    return f"{name} [{', '.join(map(str, shape))}]"


def hashed(label: str) -> bytes:
    """The name of a tensor in the table."""
    # A hash that ends in a null byte would lose it in NumPy.
    return hashlib.sha256(label.encode()).digest()[:6].replace(b"\0", b"\1")


@dataclass(frozen=True)
class WeightComparison:
    """What became of comparing two fingerprints.

    Attributes:
        compared: tensors that both have.
        different: rows that differ, by hashed name; the worst first.
        reason: why they are not the same weights; empty where they are.
    """

    compared: int
    different: tuple[bytes, ...]
    reason: str


def compare(one: Weights, other: Weights) -> WeightComparison:
    """Whether two fingerprints are of the same weights, up to number formats."""
    bits = min((_bits(weights.dtype) for weights in (one, other)), default=32)
    ours, theirs = one.rows, other.rows
    shared, left, right = np.intersect1d(ours["name"], theirs["name"], return_indices=True)
    lacking = max(len(ours), len(theirs)) - len(shared)
    if lacking and (bits > 8 or len(shared) < _LEAST_SHARE * max(len(ours), len(theirs))):
        return WeightComparison(len(shared), (), f"{lacking} tensors are in one of them only, or of another shape")
    a, b = ours[left], theirs[right]
    if bits > 8 and one.full_sha256 and other.full_sha256 and one.dtype == other.dtype:
        same = one.full_sha256 == other.full_sha256
        if not same:
            return WeightComparison(len(shared), (), "the digest over all bytes differs")
    off, limit = _off(a, b, (one.dtype, other.dtype), bits)
    wrong = np.flatnonzero(~(off <= limit))  # not a number is wrong too
    if len(wrong):
        order = wrong[np.argsort(-np.nan_to_num(off[wrong] / limit[wrong], nan=np.inf))]
        different = tuple(bytes(name) for name in a["name"][order])
        return WeightComparison(len(shared), different, f"{len(wrong)} of {len(shared)} tensors differ")
    moved = off[off > 2.0**-7]
    if bits <= 8 and len(moved) and np.median(moved) > _QUANTISED[bits][0]:
        return WeightComparison(len(shared), (), f"more differs than {bits} bits explain")
    return WeightComparison(len(shared), (), "")


def _bits(dtype: str) -> int:
    return {"int8": 8, "int4": 4}.get(dtype, 32)


def _off(a: NDArray[Any], b: NDArray[Any], dtypes: tuple[str, str], bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """By how much each tensor is off, and by how much it may be.

    In number formats: the worst of all figures, in units of what rounding explains, so the limit is 1. Quantised: in
    root mean squares; extremes do not count, as formats clip them.
    """
    one, other = (_figures(rows) for rows in (a, b))
    scale = np.maximum(a["rms"], b["rms"]).astype(np.float64)
    if bits <= 8:
        _, limit, norm_limit = _QUANTISED[bits]
        scale = np.maximum(scale, 1e-12)
        values = np.sqrt(np.mean((one[:, 3:] - other[:, 3:]) ** 2, axis=1)) / scale
        return np.maximum(values, limit / norm_limit * np.abs(one[:, 0] - other[:, 0]) / scale), np.full(len(a), limit)
    rounding = max(_ROUNDING.get(dtype, 2.0**-21) for dtype in dtypes)
    step = max(_STEP.get(dtype, 2.0**-149) for dtype in dtypes)
    # A merged adapter is rounded where it was added, which small sums of large terms show.
    allowed = rounding * (np.maximum(np.abs(one), np.abs(other)) + scale[:, None] / 8) + step
    return (np.abs(one - other) / allowed).max(axis=1), np.ones(len(a))


def _figures(rows: NDArray[Any]) -> NDArray[np.float64]:
    """``[tensors, 3 + SAMPLES]``: root mean square, extremes, values."""
    return np.column_stack([rows["rms"], rows["low"], rows["high"], rows["values"]]).astype(np.float64)
