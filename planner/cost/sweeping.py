"""Many schedules of one policy at once: parameters in arrays, figures in arrays, the same formulas as a single cost.

    found = sweep(spec, workload, "visipruner", filter=filters, keep=keeps, exit=exits)
    found.prefill_flops        # int64, one entry per schedule, exactly what `cost` gives for each

A policy takes part by a function here that lays its parameters out as segments with array fields. A stage of no
layers costs nothing, so every schedule of a policy has the same segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cost.conventions import CONVENTIONS, convention
from planner.cost.flops import Cell, _vision, cache_elements, cells_of, cost, decode_step_macs, decoder_macs
from planner.cost.hardware import Hardware
from planner.cost.roofline import CLASSES, roofline, weight_bytes
from planner.cost.staircase import Scoring, Segment
from planner.errors import InputError
from planner.schedule import Count, RankBy, Schedule, Select, Stage, dense
from planner.spec.facts import ModelSpec
from planner.workload import Workload

Array = NDArray[Any]
#: Schedules computed at a time: their arrays stay in a core's cache.
CHUNK = 1 << 14
#: Beyond this a 64-bit integer might overflow on the way, and Python's own integers are used.
SAFE = 1 << 61


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
    policy: str,
    convention_name: str = "exact",
    hardware: Hardware | None = None,
    **parameters: ArrayLike,
) -> Sweep:
    """Cost of many schedules of one policy.

    Args:
        spec, workload: as for `cost`.
        policy: one of `POLICIES`.
        convention_name: `exact` or `causal`.
        hardware: also estimate latency on it.
        parameters: the policy's, arrays of one length or single numbers.

    Raises:
        InputError: an unknown policy or parameter, arrays of different lengths, or values outside the model.
    """
    rule = convention(convention_name)
    if not rule.real:
        raise InputError(f"a sweep counts executed work, '{convention_name}' does not", "Use exact or causal")
    if policy not in POLICIES:
        raise InputError(f"policy '{policy}' cannot be swept", f"Policies: {', '.join(POLICIES)}")
    layout, names = POLICIES[policy]
    arrays = _arrays(policy, names, parameters)
    workload = _image_stream(spec, workload, policy, arrays)
    top = cost(spec, workload, dense(spec.layers), convention_name)
    huge = max(top.prefill_flops, 2 * workload.batch * top.decode_flops_per_token) > SAFE
    count = len(next(iter(arrays.values())))
    kind: Any = object if huge else np.int64
    results: dict[str, Array] = {name: np.empty(count, kind) for name in ("prefill", "visual", "decode", "cache")}
    times = {name: np.empty(count) for name in ("prefill_ms", "decode_ms")} if hardware is not None else {}
    fixed = _Fixed(spec, workload, policy, convention_name)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        chosen = {name: array[part] for name, array in arrays.items()}
        segments = layout(spec, workload, chosen, kind)
        cells = cells_of(spec, segments)
        fixed.fill(segments, cells, {name: array[part] for name, array in results.items()})
        if hardware is not None:
            fixed.time(cells, hardware, {name: array[part] for name, array in times.items()})
    return Sweep(
        parameters=arrays,
        prefill_flops=results["prefill"],
        visual_attention=results["visual"],
        decode_flops_per_token=results["decode"],
        kv_cache_bytes=results["cache"],
        prefill_ms=times.get("prefill_ms"),
        decode_ms=times.get("decode_ms"),
    )


def _image_stream(spec: ModelSpec, workload: Workload, policy: str, arrays: dict[str, Array]) -> Workload:
    """The workload as every schedule of the sweep meets it: only blind shallow layers leave an image stream behind."""
    if not workload.image_stream_cached:
        return workload
    if policy != "visipruner":
        return workload.model_copy(update={"image_stream_cached": False})
    least = max(1, spec.decoder.deepstack)
    if (arrays["filter"] < least).any():
        raise InputError(
            f"a plan with fewer than {least} shallow layers has no image stream that could be cached",
            f"Choose filter of {least} or more, or sweep without image_stream_cached",
        )
    return workload


class _Fixed:
    """What does not depend on the schedule: vision, projector, head, weights."""

    def __init__(self, spec: ModelSpec, workload: Workload, policy: str, convention_name: str) -> None:
        self.spec, self.workload, self.rule = spec, workload, CONVENTIONS[convention_name]
        entry = Select(rank_by=ENTRY_SCORE[policy], keep=Count(count=1)) if policy in ENTRY_SCORE else None
        schedule = Schedule(entry=entry, stages=(Stage(first=0, last=spec.layers),))
        self.vision, self.projector, self.scored = _vision(spec, workload, schedule)
        self.head = self.rule.flops_per_mac * workload.batch * spec.decoder.head_macs

    def fill(self, segments: tuple[Segment, ...], cells: tuple[Cell, ...], out: dict[str, Array]) -> None:
        """Write the counts of one chunk."""
        batch = self.workload.batch
        flops = self.rule.flops_per_mac * batch
        macs, visual = decoder_macs(self.rule, self.spec, segments, cells, generic=False)
        self._prefill = {name: flops * value for name, value in macs.items()}
        self._prefill["selector"] = self._prefill["selector"] + self.scored
        self._prefill |= {"vision": self.vision, "projector": self.projector, "lm_head": self.head}
        out["prefill"][:] = sum(self._prefill.values())
        out["visual"][:] = flops * visual
        step = decode_step_macs(self.spec, cells, 0)
        out["decode"][:] = 2 * sum(step.values())
        bits = cache_elements(self.spec, cells, 0) * batch * self.workload.kv_bits
        self._cache = (bits + 7) // 8
        out["cache"][:] = self._cache

    def time(self, cells: tuple[Cell, ...], hardware: Hardware, out: dict[str, Array]) -> None:
        """Write the latency estimates of the chunk just filled, as `latency` makes them."""
        spec, workload = self.spec, self.workload
        weights = weight_bytes(spec, workload, workload.batch * workload.prompt_tokens)
        work = {name: (self._prefill[name], weights.get(name, 0)) for name in CLASSES}
        work["attention_scores"] = (self._prefill["attention_scores"], self._cache)
        overhead_ms = spec.layers * hardware.overhead_us / 1000
        out["prefill_ms"][:] = sum(roofline(_floats(work), hardware).values()) + overhead_ms
        middle = (workload.output_tokens - 1) // 2
        first, later = decode_step_macs(spec, cells, 0), decode_step_macs(spec, cells, middle)
        weights = weight_bytes(spec, workload, workload.batch)
        flops = 2 * workload.batch
        steps = {
            name: (flops * first.get(name, 0), weights.get(name, 0))
            for name in CLASSES
            if name not in ("vision", "projector")
        }
        added = sum(later.values()) - sum(first.values())
        bits = cache_elements(spec, cells, middle) * workload.batch * workload.kv_bits
        steps["attention_scores"] = (flops * (first["attention_scores"] + added), (bits + 7) // 8)
        out["decode_ms"][:] = sum(roofline(_floats(steps), hardware).values()) + overhead_ms


def _floats(work: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Python's integers in arrays as floats: times are not exact anyway."""
    return {
        name: tuple(value.astype(float) if isinstance(value, np.ndarray) else value for value in pair)  # type: ignore[misc]
        for name, pair in work.items()
    }


# -- policies laid out as arrays --------------------------------------------------------------------------------------

SweepLayout = Callable[[ModelSpec, Workload, dict[str, Array], Any], tuple[Segment, ...]]


def _segment(workload: Workload, first: Any, last: Any, visual: Any, **rule: Any) -> Segment:
    rule = {"cached_visual": visual, **rule}
    return Segment(
        first=first,
        last=last,
        system=workload.system_tokens,
        text=workload.text_tokens,
        visual=visual,
        prompt_text=workload.text_tokens,
        prompt_visual=workload.visual_tokens,
        **rule,
    )


def _fastv(rank_by: RankBy) -> SweepLayout:
    def lay(spec: ModelSpec, workload: Workload, given: dict[str, Array], kind: Any) -> tuple[Segment, ...]:
        k, ratio = _layers("k", given["k"], 1, spec.layers - 1, kind), given["ratio"]
        _inside("ratio", ratio, 0, 1)
        visual = workload.visual_tokens
        share = np.round(1 - ratio.astype(float), 12)
        # `planner.schedule.kept`: the nearest whole number, halves up, at least one; a share of nothing is nothing.
        left = np.clip((share * visual + 0.5).astype(np.int64), min(1, visual), visual) * (share > 0)
        select = Select(rank_by=rank_by, keep=Count(count=1))
        before = _segment(
            workload, 0, k, visual, scorings=(Scoring(select, visual, workload.text_tokens, np.maximum(k - 1, 0)),)
        )
        return before, _segment(workload, k, spec.layers, left.astype(kind))

    return lay


def _prellm(spec: ModelSpec, workload: Workload, given: dict[str, Array], kind: Any) -> tuple[Segment, ...]:
    return (
        _segment(workload, 0, np.full(len(given["keep"]), spec.layers, kind), _budget(given["keep"], workload, kind)),
    )


def _visipruner(probe: bool) -> SweepLayout:
    def lay(spec: ModelSpec, workload: Workload, given: dict[str, Array], kind: Any) -> tuple[Segment, ...]:
        first = _layers("filter", given["filter"], 1 if probe else 0, spec.layers - 1, kind)
        last = _layers("exit", given["exit"], 1, spec.layers, kind)
        middle = first if probe else first + 1
        wrong = (last <= middle) & (last < spec.layers)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"exit={last[at]} leaves no layer to the kept tokens after filter={first[at]}",
                "Choose larger exits or smaller filters",
            )
        visual, left = workload.visual_tokens, _budget(given["keep"], workload, kind)
        if (left == 0).any() and visual:
            raise InputError("a sweep of visipruner keeps at least one token", "Choose keep of 1 or more")
        select = Select(rank_by="influence_l2", keep=Count(count=1), probe=probe)
        scoring = (Scoring(select, visual, workload.text_tokens, first),)
        shallow = _segment(
            workload, 0, first, visual, cached_visual=0, alone=True, reads=False, streamed=workload.image_stream_cached,
            scorings=scoring if probe else (),
        )  # fmt: skip
        filtering = _segment(workload, first, middle, visual, cached_visual=left, scorings=() if probe else scoring)
        kept = _segment(workload, middle, last, left)
        return shallow, filtering, kept, _segment(workload, last, spec.layers, 0)

    return lay


def _pyramiddrop(spec: ModelSpec, workload: Workload, given: dict[str, Array], kind: Any) -> tuple[Segment, ...]:
    from planner.policies.pyramiddrop import scaled

    _inside("keep", given["keep"], 1e-9, 1)
    present: Any = np.full(len(given["keep"]), workload.visual_tokens, kind)
    select = Select(rank_by="last_attention", keep=Count(count=1))
    bounds, segments = (0, *scaled((8, 16, 24), spec.layers), spec.layers), []
    for first, last in pairwise(bounds):
        scoring = (Scoring(select, present, workload.text_tokens, last - 1),) if last < spec.layers else ()
        segments.append(_segment(workload, first, last, present, scorings=scoring))
        left = (given["keep"] * present.astype(float) + 0.5).astype(np.int64)
        present = np.clip(left, min(1, workload.visual_tokens), present.astype(np.int64)).astype(kind)
    return tuple(segments)


def _budget(keep: Array, workload: Workload, kind: Any) -> Array:
    """A budget as policies take it: below 1 a share, else a whole number."""
    visual = workload.visual_tokens
    _inside("keep", keep, 0, 1 << 31)
    if ((keep >= 1) & (keep != np.floor(keep))).any():
        raise InputError("a budget of tokens must be whole", "Round keep, or give shares below 1")
    share = (keep > 0) & (keep < 1)
    counts = np.where(share, np.maximum((keep * visual + 0.5).astype(np.int64), min(1, visual)), keep.astype(np.int64))
    return np.minimum(counts, visual).astype(kind)


def _layers(name: str, values: Array, least: int, most: int, kind: Any) -> Array:
    _inside(name, values, least, most)
    whole = values.astype(np.int64)
    if (whole != values).any():
        raise InputError(f"{name} must be whole layers", "Round it")
    return whole.astype(kind)


def _inside(name: str, values: Array, least: float, most: float) -> None:
    if not ((values >= least) & (values <= most)).all():
        raise InputError(f"{name} must lie between {least:g} and {most:g}", "Check the sweep's ranges")


#: Name -> layout and parameters with their defaults (None: must be given).
POLICIES: dict[str, tuple[SweepLayout, dict[str, float | None]]] = {
    "fastv": (_fastv("last_attention"), {"k": None, "ratio": None}),
    "random": (_fastv("random"), {"k": None, "ratio": None}),
    "prellm": (_prellm, {"keep": None}),
    "pyramiddrop": (_pyramiddrop, {"keep": None}),
    "visipruner": (_visipruner(probe=False), {"filter": None, "keep": None, "exit": None}),
    "visipruner-probe": (_visipruner(probe=True), {"filter": None, "keep": None, "exit": None}),
}
#: Policies whose selection happens before the decoder, and by which score.
ENTRY_SCORE: dict[str, RankBy] = {"prellm": "encoder_attention"}


def _arrays(policy: str, names: Mapping[str, float | None], given: Mapping[str, ArrayLike]) -> dict[str, Array]:
    for name in given:
        if name not in names:
            raise InputError(f"a sweep of '{policy}' has no parameter '{name}'", f"Parameters: {', '.join(names)}")
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(f"a sweep of '{policy}' needs {', '.join(missing)}", "Give each as a number or a range")
    arrays = {name: np.atleast_1d(np.asarray(given[name])) for name in names}
    lengths = {len(array) for array in arrays.values()} - {1}
    if len(lengths) > 1 or any(array.ndim != 1 for array in arrays.values()):
        raise InputError("the arrays of a sweep must have one length", "Use numpy.meshgrid and ravel for a grid")
    length = max(lengths, default=1)
    return {name: np.broadcast_to(array, length) for name, array in arrays.items()}
