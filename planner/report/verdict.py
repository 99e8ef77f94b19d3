"""The verdict on a plan, in plain words and first: what it saves, what it keeps and how surely, how others do at that
cost, what it gains here in time, and what to do next. A function of the plan alone; text, Markdown and HTML show it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import fill

from planner.engines import portability
from planner.evidence import Evidence, Promise, Row, Rung
from planner.plan import Plan
from planner.report.rows_view import base_name
from planner.report.units import flops, percent, share_with_interval, size

#: Times that differ by less than this share are not told apart.
_NOISE = 0.05
#: A prefill of fewer FLOPs than this is mostly the fixed cost of its layers, on a CPU as on a GPU.
_SMALL_FLOPS = 5e10
#: Time that falls by this share less than FLOPs asks for an explanation.
_LAGGING = 0.15
_WIDTH, _INDENT = 100, "  "


@dataclass(frozen=True)
class Verdict:
    """What a reader wants to know first.

    Attributes:
        headline: one sentence.
        points: topic and sentences.
        commands: what to do next, and the line that does it.
    """

    headline: str
    points: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, str], ...]


def verdict(plan: Plan, path: str = "plan.json") -> Verdict:
    """What a plan says of itself, judged.

    Args:
        path: of the plan, for the commands.
    """
    judged = _Judged(plan, path)
    points = [("Saved", judged.saved), ("Kept", judged.kept), ("Others", judged.others), ("Time", judged.time)]
    if plan.decision.schedule.empty:
        points = [("Why", judged.why_dense), ("What would help", judged.help)]
    elif not plan.proven:
        points.append(("What would help", judged.help))
    return Verdict(judged.headline, tuple((name, text) for name, text in points if text), tuple(judged.commands()))


def as_text(found: Verdict, fmt: str = "table") -> str:
    """A verdict as plain text (`table`) or Markdown (`md`)."""
    if fmt == "md":
        points = "\n".join(f"- **{name}.** {text}" for name, text in found.points)
        lines = "\n".join(f"{line}  # {what}" for what, line in found.commands)
        return f"**{found.headline}**\n\n{points}\n\n```\n{lines}\n```"
    parts = [fill(found.headline, _WIDTH)]
    parts += [
        fill(f"{name}: {text}", _WIDTH, initial_indent=_INDENT, subsequent_indent=2 * _INDENT)
        for name, text in found.points
    ]
    longest = max((len(what) for what, _ in found.commands), default=0)
    parts += [f"{_INDENT}{what:{longest}}  {line}" for what, line in found.commands]
    return "\n".join(parts)


class _Judged:
    """The parts of a verdict; each is a text that may be empty."""

    def __init__(self, plan: Plan, path: str) -> None:
        self.plan, self.path = plan, path
        self.evidence: Evidence | None = plan.evidence
        self.promise: Promise | None = None if plan.evidence is None else plan.evidence.promise
        self.dense = None if plan.evidence is None else plan.evidence.row("dense")
        self.row = None if plan.evidence is None else plan.evidence.row("plan")

    @property
    def headline(self) -> str:
        if self.plan.decision.schedule.empty:
            return "No plan: the model stays as it is, since nothing cheaper was proven to keep what was asked for."
        share, what = self._flops_share()
        saves = f"This plan computes {percent(share)} of the dense model's {what}" if what else "This plan is costed"
        if self.evidence is None:
            return f"{saves}; what it keeps of the answers was not measured."
        if self.promise is None:
            return f"{saves}; it was made before plans were proven, so what it keeps is not known surely."
        if self.plan.proven:
            return (
                f"{saves} and keeps {_asked(self.promise)}: proven, with confidence {percent(self.promise.confidence)}."
            )
        return f"{saves}; that it keeps {_asked(self.promise)} is not proven."

    @property
    def saved(self) -> str:
        """FLOPs, cache and time."""
        parts = []
        row, dense = self.row, self.dense
        if row is not None and dense is not None and row.decoder_flops is not None and dense.decoder_flops:
            share = row.decoder_flops / dense.decoder_flops
            parts.append(f"decoder FLOPs of a prompt {flops(row.decoder_flops)} in place of "
                         f"{flops(dense.decoder_flops)} ({percent(share)})")  # fmt: skip
            if row.kv_cache_bytes is not None and dense.kv_cache_bytes:
                parts.append(f"KV cache {size(row.kv_cache_bytes)} in place of {size(dense.kv_cache_bytes)} "
                             f"({percent(row.kv_cache_bytes / dense.kv_cache_bytes)})")  # fmt: skip
        elif self.plan.prediction:
            found = self.plan.prediction[0]
            parts.append(f"prefill {flops(found.planned.prefill_flops)} in place of "
                         f"{flops(found.dense.prefill_flops)}, vision encoder included, "
                         f"KV cache {percent(found.kv_cache_ratio)} of dense (predicted)")  # fmt: skip
        if self._timed:
            parts.append(f"prefill measured here {_ms(row)} in place of {_ms(dense)} "
                         f"({percent(self._time_ratio)})")  # fmt: skip
        return _sentence(", ".join(parts))

    @property
    def kept(self) -> str:
        """The proof, and what the evaluation saw."""
        parts = []
        rung = None if self.promise is None else self.promise.rung(self.plan.decision.policy)
        if rung is not None:
            lost = "none lost anything" if not rung.misses else f"{rung.misses} lost something"
            parts.append(f"of {rung.n} samples that had no part in the choice {lost}")
            if not self.plan.proven:
                parts[-1] += f", which shows a mean loss below {rung.bound:.3g} and no more"
        row, dense = self.row, self.dense
        if row is not None:
            found = f"of {row.agreement.n:,} others {share_with_interval(row.agreement)} got the dense model's answer"
            if row.accuracy is not None and dense is not None and dense.accuracy is not None:
                found += f"; {percent(row.accuracy.value, 1)} were right, dense {percent(dense.accuracy.value, 1)}"
            parts.append(found)
        broken = "" if not self._broken else (
            f" That is less than was promised: these samples are of another kind, or this is one of the "
            f"{percent(1 - (self.promise.confidence if self.promise else 0))} of plans that fail."
        )  # fmt: skip
        return _sentence("; ".join(parts)) + broken

    @property
    def others(self) -> str:
        """Random pruning and the best other policy at the plan's cost."""
        if self.row is None:
            return ""
        random = next((row for row in self._policies if base_name(row.policy) == "random"), None)
        best = max((row for row in self._policies if row is not random), key=lambda row: _kept(row)[0], default=None)
        parts = [] if random is None else [f"random pruning {self._beside(random, self.row)}"]
        if best is not None:
            parts.append(f"the best other policy, {base_name(best.policy)}, {self._beside(best, self.row)}")
        return _sentence("at that cost " + " and ".join(parts)) if parts else ""

    @property
    def time(self) -> str:
        """Whether the saving is felt on the machine that measured, and why not."""
        row = self.row
        if row is None or not self._timed:
            return ""
        parts = []
        if self._slow:
            parts.append("on this machine the plan is no faster than the dense model.")
        if self._faster:
            named = ", ".join(f"{base_name(one.policy)} ({_ms(one)})" for one in self._faster)
            parts.append(f"at its FLOPs {named} ran faster than the plan ({_ms(row)}): choosing tokens takes time.")
        share = row.decoder_flops_ratio
        if share is not None and self._time_ratio > share + _LAGGING:
            parts.append(f"prefill time falls less than FLOPs do: {self._why_slow()}.")
        return " ".join(map(_sentence, parts))

    @property
    def why_dense(self) -> str:
        promise = self.promise
        if promise is None:
            return ""
        asked = f"{_asked(promise)} was to be proven with confidence {percent(promise.confidence)}"
        if not promise.tested:
            return _sentence(f"{asked}, and no candidate that saves anything looked as if it could")
        rung = promise.tested[0]
        return _sentence(
            f"{asked}; the safest candidate, {rung.policy} ({percent(rung.share)} of dense), lost {rung.misses} of "
            f"{rung.n} samples, too many for that"
        )

    @property
    def help(self) -> str:
        """More samples, or a looser limit."""
        promise = self.promise
        if promise is None or self.plan.proven:
            return ""
        parts = []
        best = self._best_rung
        if best is not None:
            option = "--kind-limit" if promise.kind_limit else self._looser
            parts.append(f"a looser limit ({option} is near what {best.policy} showed: a loss below {best.bound:.2g})")
        n = promise.tested[0].n if promise.tested else 0
        than = f" than the {n} that certified here" if n else ""
        parts.append(f"more calibration samples{than}: the more there are, the more of them may change their answer")
        if promise.loss == "answer":
            parts.append("--loss tokens, where answers are long and part in a word")
        return _sentence("; ".join(parts))

    def commands(self) -> Iterator[tuple[str, str]]:
        path = shlex.quote(self.path)
        if self.plan.decision.schedule.empty:
            yield "again, with a looser limit or more samples", f"{self._again} {self._looser or '--agreement 0.95'}"
            yield "the best that was found, not proven", f"{self._again} --best-effort"
            return
        if self.evidence is None:
            yield "measure what it keeps", f"plan evaluate {path} --data SAMPLES"
        if self._slow or self._faster:
            yield "choose by measured time", f"{self._again} --minimise prefill-ms --hardware measured"
        yield "try it", f'plan run {path} --image photo.jpg --prompt "What is this?"'
        yield "in Python", f'with load_plan("{self.path}").apply(model): model.generate(**inputs)'
        yield "time and memory here", f"plan bench {path}"
        yield "OpenAI-compatible server", f"plan serve {path}"
        carries = [one.engine.name for one in portability(self.plan) if one.level != "no"]
        engine = next((name for name in ("vllm", "openvino", "trt-edge", "llamacpp") if name in carries), None)
        if engine is not None:
            yield "for an inference engine", f"plan export {path} --to {engine}"
        else:
            yield "a plan that vLLM can run", f"{self._again} --portable vllm"

    # -- what the parts are made of -----------------------------------------------------------------------------------

    @property
    def _again(self) -> str:
        """The calibration once more; bundled models bring their samples."""
        name = self.plan.model.id
        return f"plan calibrate {shlex.quote(name)}" + ("" if name.startswith("reference/") else " --data SAMPLES")

    @property
    def _best_rung(self) -> Rung | None:
        """Of those that were tested, the one of which most was shown."""
        best = None if self.promise is None else min(self.promise.tested, key=lambda rung: rung.bound, default=None)
        return best if best is not None and 0 < best.bound < 1 else None

    @property
    def _looser(self) -> str:
        """A limit near what was shown; "" where nothing was, or each kind of question has a limit of its own."""
        best = self._best_rung
        if best is None or self.promise is None or self.promise.kind_limit:
            return ""
        return f"--agreement {math.floor(100 - 100 * best.bound) / 100}"

    def _flops_share(self) -> tuple[float, str]:
        if self.row is not None and self.row.decoder_flops_ratio is not None:
            return self.row.decoder_flops_ratio, "decoder FLOPs"
        if self.plan.prediction:
            return self.plan.prediction[0].prefill_ratio, "prefill FLOPs (predicted)"
        return 1.0, ""

    @property
    def _timed(self) -> bool:
        return bool(self.row and self.dense and self.row.prefill_ms and self.dense.prefill_ms)

    @property
    def _time_ratio(self) -> float:
        if self.row is None or self.dense is None or not self.row.prefill_ms or not self.dense.prefill_ms:
            return 1.0
        return self.row.prefill_ms / self.dense.prefill_ms

    @property
    def _broken(self) -> bool:
        """Whether the evaluation contradicts what was proven, beyond its interval."""
        if self.row is None or self.promise is None or not self.plan.proven:
            return False
        if self.row.loss is not None:
            return self.row.loss.low > self.promise.limit
        return self.promise.loss == "answer" and self.row.agreement.high < 1 - self.promise.limit

    @property
    def _slow(self) -> bool:
        """Whether the plan is no faster than the dense model, as far as that can be told."""
        return self._timed and self._time_ratio > 1 - _NOISE

    @property
    def _faster(self) -> list[Row]:
        """Other policies at the plan's cost that ran faster."""
        if self.row is None or not self.row.prefill_ms:
            return []
        limit_ms = self.row.prefill_ms / (1 + _NOISE)
        return [one for one in self._policies if one.prefill_ms and one.prefill_ms < limit_ms]

    @property
    def _policies(self) -> list[Row]:
        return [] if self.evidence is None else [row for row in self.evidence.rows if row.role == "policy"]

    def _beside(self, other: Row, row: Row) -> str:
        """What another row keeps, whether that is told apart from the plan's, and at which cost if at a higher one."""
        (_, low, high), (_, other_low, other_high) = _kept(row), _kept(other)
        relation = "fewer" if other_high < low else "more" if other_low > high else "not told apart from the plan's"
        costs = ""
        if other.decoder_flops_ratio and row.decoder_flops_ratio:
            dearer = other.decoder_flops_ratio > row.decoder_flops_ratio * (1 + _NOISE)
            costs = f" for {percent(other.decoder_flops_ratio)} of the FLOPs" if dearer else ""
        if other.loss is not None and row.loss is not None:
            worse = {"fewer": "worse", "more": "better"}.get(relation, relation)
            return f"loses {other.loss.value:.3f} a sample where the plan loses {row.loss.value:.3f} ({worse}){costs}"
        return f"keeps {percent(other.agreement.value, 1)} of the answers ({relation}){costs}"

    def _why_slow(self) -> str:
        found = self.plan.prediction[0].dense.prefill_flops if self.plan.prediction else None
        if found is not None and found < _SMALL_FLOPS:
            return (
                f"a dense prefill of this model is {flops(found)} over {self.plan.model.layers} layers, so that each "
                "layer's fixed cost, which dropping tokens does not reduce, is much of its time"
            )
        return (
            "at this size and batch much of the time is not arithmetic (launching kernels, reading weights); larger "
            "batches and compiled prefills (handle.compile_prefill) gain more"
        )


def _asked(promise: Promise) -> str:
    """What had to be kept."""
    kept = percent(1 - promise.limit)
    return {
        "answer": f"at least {kept} of its answers unchanged",
        "tokens": f"at least {kept} of the tokens in its answers",
        "nll": f"its answers within {promise.limit:g} nats per token",
        "score": f"its accuracy ({promise.metric}) within {percent(promise.limit)}",
    }[promise.loss]


def _kept(row: Row) -> tuple[float, float, float]:
    """What a row keeps, with its interval: its loss where there is one, else its agreement."""
    if row.loss is not None:
        return -row.loss.value, -row.loss.high, -row.loss.low
    return row.agreement.value, row.agreement.low, row.agreement.high


def _ms(row: Row | None) -> str:
    return "" if row is None or row.prefill_ms is None else f"{row.prefill_ms:.1f} ms"


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
