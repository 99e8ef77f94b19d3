"""Many schedules of one policy: parameters in arrays, figures in arrays, each exactly what `cost` gives.

    found = sweep(spec, workload, VisiPruner, filter=filters, keep=keeps, exit=exits)
    found.prefill_flops        # int64, one entry per schedule

Every policy can be swept, some 100 us a schedule. Policies that lay their parameters out as arrays (`Policy.layout`)
take a fast path, a thousand times faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from planner.cost.conventions import convention
from planner.cost.flops import (
    cache_bits,
    cells_of,
    cost,
    decode_step,
    decoder_macs,
    sight_flops,
)
from planner.cost.hardware import Hardware
from planner.cost.machine import Machine
from planner.cost.roofline import latency
from planner.cost.selector import entry_macs
from planner.cost.staircase import Segment
from planner.cost.sweep_layout import Array, SweepLayout
from planner.errors import InputError
from planner.schedule import Schedule, Stage, dense
from planner.spec.facts import ModelSpec
from planner.workload import Workload

if TYPE_CHECKING:
    from planner.policies import Policy
    from planner.profile import Profile

#: Schedules computed at a time: their arrays stay in a core's cache.
CHUNK = 1 << 14
#: Beyond this a 64-bit integer might overflow on the way, and Python's own integers are used.
SAFE = 1 << 61


class Scheduled(Protocol):
    """A policy, or a composition of some."""

    def schedule(self, spec: ModelSpec, workload: Workload | None = None, profile: Any = None) -> Schedule: ...


@dataclass(frozen=True)
class Sweep:
    """Figures of many schedules, one entry each, and the parameters they belong to.

    Attributes:
        parameters: name to array.
        prefill_flops, visual_attention: whole batch. decode_flops_per_token: one request, first step.
        kv_cache_bytes: after the prefill, whole batch.
        prefill_ms, decode_ms: roofline estimates, None without hardware.
    """

    parameters: dict[str, Array]
    prefill_flops: Array
    visual_attention: Array
    decode_flops_per_token: Array
    kv_cache_bytes: Array
    prefill_ms: Array | None = None
    decode_ms: Array | None = None

    def __len__(self) -> int:
        return len(self.prefill_flops)


def sweep(
    spec: ModelSpec,
    workload: Workload,
    policy: type[Policy],
    convention_name: str = "exact",
    hardware: Hardware | None = None,
    profile: Profile | None = None,
    **parameters: ArrayLike,
) -> Sweep:
    """Cost of many schedules of one policy.

    Args:
        spec, workload: as for `cost`.
        policy: its class.
        convention_name: as for `cost`; those of executed work are fast where the policy is.
        hardware: also estimate latency on it, under a convention of executed work.
        profile: for policies that take parameters from it.
        parameters: the policy's, arrays of one length or single values; what is left out has its default.

    Raises:
        InputError: a parameter that the policy does not have or that does not fit, or arrays of different lengths.
    """
    _check(convention_name, hardware)
    arrays = _arrays(parameters)
    count = len(next(iter(arrays.values()))) if arrays else 1
    fast = _Fast(spec, workload, policy, convention_name, hardware)
    chunks = []
    for start in range(0, count, CHUNK):
        chosen = {name: array[start : start + CHUNK] for name, array in arrays.items()}
        figures = fast.figures(chosen)
        if figures is None:
            made = _members(policy, chosen, min(CHUNK, count - start))
            figures = _each(spec, workload, made, convention_name, hardware, profile)
        chunks.append(figures)
    return _joined(arrays, chunks)


def sweep_each(
    spec: ModelSpec,
    workload: Workload,
    policies: Iterable[Scheduled],
    convention_name: str = "exact",
    hardware: Hardware | None = None,
    profile: Profile | None = None,
) -> Sweep:
    """Cost of policies or compositions, one by one; see `sweep`. The parameters are left out."""
    _check(convention_name, hardware)
    return _joined({}, [_each(spec, workload, policies, convention_name, hardware, profile)])


def _check(convention_name: str, hardware: Hardware | None) -> None:
    if hardware is not None and not convention(convention_name).real:
        raise InputError(
            f"'{convention_name}' counts as a paper does, not what a device executes",
            "Use exact or causal with hardware",
        )


def _arrays(given: dict[str, ArrayLike]) -> dict[str, Array]:
    arrays = {name: np.atleast_1d(np.asarray(values)) for name, values in given.items()}
    lengths = {len(array) for array in arrays.values()} - {1}
    if len(lengths) > 1 or any(array.ndim != 1 for array in arrays.values()):
        raise InputError("the arrays of a sweep must have one length", "Use numpy.meshgrid and ravel for a grid")
    length = max(lengths, default=1)
    if not length:
        raise InputError("a sweep of nothing has no figures", "Give at least one value of each parameter")
    return {name: np.broadcast_to(array, length) for name, array in arrays.items()}


def _members(policy: type[Policy], arrays: dict[str, Array], count: int) -> Iterator[Policy]:
    """The policy under each set of parameters."""
    if not arrays:
        yield from (policy.make({}) for _ in range(count))
        return
    for values in zip(*(array.tolist() for array in arrays.values()), strict=True):
        yield policy.make(dict(zip(arrays, values, strict=True)))


#: Figures of a sweep, in the order of `Sweep`'s fields.
_Figures = tuple[Array, ...]


def _each(
    spec: ModelSpec,
    workload: Workload,
    policies: Iterable[Scheduled],
    convention_name: str,
    hardware: Hardware | None,
    profile: Any,
) -> _Figures:
    """Schedules one by one, each through `cost` and `latency`."""
    rows: list[list[Any]] = []
    for policy in policies:
        found = cost(spec, workload, policy.schedule(spec, workload, profile), convention_name)
        row = [found.prefill_flops, found.visual_attention, found.decode_flops_per_token, found.kv_cache_bytes]
        if hardware is not None:
            time = latency(found, hardware)
            row += [time.prefill_ms, time.decode_ms]
        rows.append(row)
    return tuple(_column(values) for values in zip(*rows, strict=True))


def _column(values: tuple[Any, ...]) -> Array:
    """Integers of any size stay exact."""
    large = any(isinstance(value, int) and value > SAFE for value in values)
    return np.array(values, dtype=object if large else None)


def _joined(parameters: dict[str, Array], chunks: list[_Figures]) -> Sweep:
    return Sweep(parameters, *(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


class _Fast:
    """Figures of schedules that a policy lays out as arrays."""

    def __init__(
        self, spec: ModelSpec, workload: Workload, policy: type[Policy], convention_name: str, hardware: Hardware | None
    ) -> None:
        self.spec, self.workload, self.policy = spec, workload, policy
        self.rule, self.hardware = convention(convention_name), hardware
        top = cost(spec, workload, dense(spec.layers), convention_name)
        large = max(top.prefill_flops, 2 * workload.batch * top.decode_flops_per_token) > SAFE
        self.kind: Any = object if large else np.int64

    def figures(self, given: dict[str, Array]) -> _Figures | None:
        """Figures of some schedules; None where the policy does not lay them out."""
        numbers = all(array.dtype.kind in "biuf" for array in given.values())
        if not (self.rule.real and numbers):
            return None
        layout = self.policy.layout(self.spec, self.workload, given, self.kind)
        return None if layout is None else self._figures(layout, len(next(iter(given.values()))) if given else 1)

    def _figures(self, layout: SweepLayout, count: int) -> _Figures:
        spec, segments, batch = self.spec, layout.segments, self.workload.batch
        cells = cells_of(spec, segments)
        flops = self.rule.flops_per_mac * batch
        macs, visual = decoder_macs(self.rule, spec, segments, cells, generic=False)
        prefill = {name: flops * value for name, value in macs.items()}
        streamed = self.workload.image_stream_cached and layout.streams
        request = self.workload.model_copy(update={"image_stream_cached": streamed})
        whole = Schedule(entry=layout.entry, stages=(Stage(first=0, last=spec.layers),))
        prefill["vision"], prefill["projector"], scored = sight_flops(spec, request, whole)
        prefill["selector"] = prefill["selector"] + scored
        if layout.entry is not None:
            chosen = entry_macs(layout.entry, spec.hidden_size, self.workload.visual_tokens, segments[0].visual)
            prefill["selector"] = prefill["selector"] + flops * chosen
        prefill["lm_head"] = flops * spec.decoder.head_macs
        step, cached = decode_step(spec, cells, 0)
        bits = cache_bits(spec, cached, self.workload.kv_bits) * batch
        cache = (bits + 7) // 8
        figures = (sum(prefill.values()), flops * visual, 2 * sum(step.values()), cache)
        columns = tuple(np.broadcast_to(np.asarray(value, self.kind), count) for value in figures)
        if self.hardware is None:
            return columns
        times = self._times(segments, self.hardware, prefill, request, whole)
        return (*columns, *(np.broadcast_to(np.asarray(time, float), count) for time in times))

    def _times(
        self,
        segments: tuple[Segment, ...],
        hardware: Hardware,
        prefill: dict[str, Any],
        workload: Workload,
        whole: Schedule,
    ) -> tuple[Any, Any]:
        """Prefill and decode time, as `latency` estimates them."""
        machine = Machine(hardware)
        spec = machine.engine.executed(self.spec)
        if spec is not self.spec:
            prefill = prefill | {"vision": sight_flops(spec, workload, whole)[0]}
        # Times are not exact anyway, and floats are faster than Python's own integers in arrays.
        cells = cells_of(spec, tuple(_floats(part) for part in segments))
        vision, decoder = machine.prefill(spec, workload, cells, self.rule, prefill)
        step = machine.decode(spec, workload, cells, (workload.output_tokens - 1) // 2)
        return machine.ms(vision) + machine.ms(decoder), machine.ms(step)


def _floats(segment: Segment) -> Segment:
    """The same rows and layers, their arrays as floats."""
    values: dict[str, Any] = segment._asdict() | {"scorings": ()}
    made: dict[int, Array] = {}  # what is one array stays one
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype != bool:
            if id(value) not in made:
                made[id(value)] = value.astype(float)
            values[name] = made[id(value)]
    return Segment(**values)
