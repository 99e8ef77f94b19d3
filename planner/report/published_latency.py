"""Published measurements of latency beside estimates, and engine constants fitted to them.

The measurements are data, ``profiles/published/latency.json``. An engine's constants are those under which its
estimates come nearest to its measurements; they are judged leave-one-out: every measurement is estimated with
constants fitted to those of all other devices and sources. Laboratories differ more than devices: the same model on
the same GPU, dense, has been printed with 57.8 ms and with 124.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from planner.cost import Cost, cost
from planner.cost.constants import Constants, EngineName
from planner.cost.engine import ENGINES, engine
from planner.cost.hardware import shipped_row
from planner.cost.roofline import Latency, latency
from planner.policies import parse
from planner.spec import ModelSpec
from planner.workload import Workload

#: What is fitted per engine, with where the search begins and the largest value; the others are as the file has them.
FITTED: dict[EngineName, dict[str, tuple[float, float]]] = {
    "hf": {
        "matmul": (0.6, 1.0),
        "layer_us": (600.0, 3000.0),
        "tower_layer_us": (1000.0, 3000.0),
        "step_us": (7000.0, 30000.0),
    },
    "vllm": {
        "matmul": (0.8, 1.0),
        "attention": (0.5, 1.0),
        "memory": (0.8, 1.0),
        "overlap": (0.3, 1.0),
        "layer_us": (100.0, 500.0),
    },
}
#: A row of a further token's time.
DECODE = "a decode step, dense"
#: Relative errors beyond this count less than their square: outliers do not decide.
_USUAL_ERROR = 0.1


class Pruned(BaseModel):
    """One pruned row: a policy's spelling, and milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    ms: float


class Measurement(BaseModel):
    """Times to the first token, dense and pruned, from one source on one device.

    Attributes:
        scope: ``model`` with the vision encoder, ``decoder`` without.
        decode_ms: a further token, dense, in an answer of `output_tokens`; None where it is not printed.
        image: its width and height, for models whose tower depends on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    engine: EngineName
    hardware: str
    model: str
    visual_tokens: int
    system_tokens: int
    text_tokens: int
    scope: Literal["model", "decoder"]
    dense_ms: float
    policies: tuple[Pruned, ...]
    decode_ms: float | None = None
    output_tokens: int = 1
    image: tuple[int, int] | None = None
    note: str = ""


class Row(NamedTuple):
    """One measured time and its estimate; speed-ups are dense over pruned, 1 for a dense row. `what` is a policy, dense
    or `DECODE`."""

    measurement: Measurement
    what: str
    ms: float
    estimated_ms: float
    speedup: float
    estimated_speedup: float

    @property
    def error(self) -> float:
        """Of the time, relative."""
        return self.estimated_ms / self.ms - 1

    @property
    def speedup_error(self) -> float:
        """Of the speed-up, relative."""
        return self.estimated_speedup / self.speedup - 1


def measurements() -> tuple[Measurement, ...]:
    """All of them."""
    text = (resources.files("planner.profiles") / "published" / "latency.json").read_text(encoding="utf-8")
    return tuple(Measurement.model_validate(values) for values in json.loads(text)["measurements"])


class _Costed(NamedTuple):
    measurement: Measurement
    dense: Cost
    pruned: tuple[Cost, ...]


def _costed(found: Sequence[Measurement]) -> list[_Costed]:
    return [
        _Costed(one, _cost(one, "dense"), tuple(_cost(one, pruned.policy) for pruned in one.policies)) for one in found
    ]


def _cost(found: Measurement, policy: str) -> Cost:
    spec = ModelSpec.from_config(found.model)
    workload = Workload(
        visual_tokens=found.visual_tokens,
        system_tokens=found.system_tokens,
        text_tokens=found.text_tokens,
        output_tokens=found.output_tokens,
        images=(found.image,) if found.image is not None else (),
    )
    return cost(spec, workload, parse(policy).schedule(spec, workload, None), "causal")


def _rows(found: Sequence[_Costed], constants: Constants) -> Iterator[Row]:
    for measurement, dense, pruned in found:
        time = _latency(measurement, dense, constants)
        whole = _first_token_ms(measurement, time)
        yield Row(measurement, "dense", measurement.dense_ms, whole, 1.0, 1.0)
        if measurement.decode_ms is not None:
            yield Row(measurement, DECODE, measurement.decode_ms, time.decode_ms, 1.0, 1.0)
        for one, of in zip(measurement.policies, pruned, strict=True):
            ms = _first_token_ms(measurement, _latency(measurement, of, constants))
            yield Row(measurement, one.policy, one.ms, ms, measurement.dense_ms / one.ms, whole / ms)


def _latency(found: Measurement, of: Cost, constants: Constants) -> Latency:
    return latency(of, shipped_row(found.hardware).model_copy(update={"engine": found.engine, "measured": constants}))


def _first_token_ms(found: Measurement, time: Latency) -> float:
    return time.prefill_ms - (time.vision_ms if found.scope == "decoder" else 0.0)


def fitted(name: EngineName, found: Sequence[Measurement]) -> Constants:
    """Constants of an engine under which its estimates come nearest to measurements."""
    return _fitted(name, _costed([one for one in found if one.engine == name]))


def _fitted(name: EngineName, found: Sequence[_Costed]) -> Constants:
    from scipy.optimize import least_squares

    usual, chosen = engine(name).constants, FITTED[name]
    start = [value for value, _ in chosen.values()]

    def changed(multiples: Sequence[float]) -> Constants:
        values = {key: one * value for key, one, value in zip(chosen, multiples, start, strict=True)}
        return usual.model_copy(update={key: float(value) for key, value in values.items()})

    def errors(multiples: Sequence[float]) -> list[float]:
        return [math.log(row.estimated_ms / row.ms) for row in _rows(found, changed(multiples))]

    best = least_squares(
        errors,
        [1.0] * len(start),
        bounds=([1e-3] * len(start), [most / value for value, most in chosen.values()]),
        loss="soft_l1",
        f_scale=_USUAL_ERROR,
        diff_step=1e-3,
    )
    return changed(best.x)


def left_out(name: EngineName, found: Sequence[Measurement]) -> list[Row]:
    """Every row of an engine, estimated with constants fitted to those of other sources and, of a source with several
    devices, of other devices."""
    costed = _costed([one for one in found if one.engine == name])
    rows: list[Row] = []
    for key in dict.fromkeys(_key(one.measurement) for one in costed):
        others = [one for one in costed if _key(one.measurement) != key]
        rows += _rows([one for one in costed if _key(one.measurement) == key], _fitted(name, others))
    return rows


def fitted_to_all(name: EngineName, found: Sequence[Measurement]) -> list[Row]:
    """Every row of an engine, estimated with constants fitted to all of them, itself included."""
    costed = _costed([one for one in found if one.engine == name])
    return list(_rows(costed, _fitted(name, costed)))


def _key(found: Measurement) -> tuple[str, str]:
    return found.source, found.hardware


def markdown() -> str:
    """The page: every measurement beside its leave-one-out estimate, and the medians."""
    found = measurements()
    engines = [name for name in ENGINES if name in FITTED]
    rows = {name: left_out(name, found) for name in engines}
    within = {name: fitted_to_all(name, found) for name in engines}
    every, every_within = ([row for of in group.values() for row in of] for group in (rows, within))
    lines = [
        "# Published latency, measured and estimated",
        "",
        "Time to the first token. Each estimate is made with constants of the engine that were fitted to the",
        "measurements of other sources, and of other devices of the same source. Made by",
        "`plan report --published-latency -o reports/latency.md`; the measurements and what is known of them are in",
        "`profiles/published/latency.json`.",
        "",
        "| | times to the first token | median error | fitted to all | speed-ups | median error | fitted to all |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_summary(f"engine `{name}`", rows[name], within[name]) for name in engines),
        _summary("both", every, every_within),
        "",
        "*Fitted to all* are errors of constants that have seen every row: in the fit's own measure no constants are",
        "nearer, so they show how far the rows are from each other.",
        "",
        "The medians of both engines together hide how unlike they are. Rows of `vllm` are sums of measured kernels of",
        "one tool. Those of `hf` are from laboratories whose hosts, releases and ways of measuring differ:",
        "",
        *_spread(found),
        "",
        "What the device does is the same in both rows of a pair; what differs is the host, which no data sheet tells.",
        "An estimate cannot be nearer to such rows than they are to each other, and a row of a laboratory that the",
        "others do not resemble is estimated badly when it is left out. `plan bench --fit-hardware` measures yours.",
        "",
    ]
    for name, of_engine in rows.items():
        lines += [f"## Engine `{name}`", "", *_table(of_engine), ""]
    return "\n".join(lines)


def _spread(found: Sequence[Measurement]) -> Iterator[str]:
    """Times that several sources print of one model, prompt and policy, on devices of equal peaks: a line each."""
    printed: dict[tuple[str, ...], list[float]] = {}
    for one in found:
        row = shipped_row(one.hardware)
        if one.engine == "hf":
            for policy, ms in (("dense", one.dense_ms), *((pruned.policy, pruned.ms) for pruned in one.policies)):
                printed.setdefault((one.model, one.scope, policy, f"{row.peak_tflops:g}"), []).append(ms)
    for (model, scope, policy, tflops), times in printed.items():
        if len(times) > 1:
            apart = max(times) / min(times) - 1
            listed = " and ".join(f"{ms:g}" for ms in sorted(times))
            yield f"- {model}, {scope}, `{policy}`, GPUs of {tflops} TFLOP/s: {listed} ms, {apart:.0%} apart"


def _summary(label: str, rows: Sequence[Row], within: Sequence[Row]) -> str:
    times, speedups = [row for row in rows if row.what != DECODE], [row for row in rows if _pruned(row)]
    errors = [statistics.median(abs(row.error) for row in of if row.what != DECODE) for of in (rows, within)]
    speed_errors = [statistics.median(abs(row.speedup_error) for row in of if _pruned(row)) for of in (rows, within)]
    return (
        f"| {label} | {len(times)} | {errors[0]:.0%} | {errors[1]:.0%} "
        f"| {len(speedups)} | {speed_errors[0]:.0%} | {speed_errors[1]:.0%} |"
    )


def _pruned(row: Row) -> bool:
    return row.what not in ("dense", DECODE)


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| source | device | model | of | what | ms | estimated | speed-up | estimated |",
        "|---|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        of = row.measurement
        speed = ["", ""]
        if row.what not in ("dense", DECODE):
            speed = [f"{row.speedup:.2f}", f"{row.estimated_speedup:.2f} ({row.speedup_error:+.0%})"]
        cells = [
            of.source,
            of.hardware,
            of.model,
            of.scope,
            row.what if row.what == DECODE else f"`{row.what}`",
            f"{row.ms:g}",
        ]
        cells += [f"{row.estimated_ms:.1f} ({row.error:+.0%})", *speed]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
