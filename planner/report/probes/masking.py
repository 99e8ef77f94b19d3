"""Masking curves: where the text needs the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from planner.report import charts
from planner.report.charts import Series, exact
from planner.report.section import Picture, Section, Subject, Table, percent, series, shown

#: What each curve does to the layers before, from, or at k.
MEANINGS = {
    "prefix_before": "[0, k) hidden from text, visual rows see the text before them (as a plan runs it)",
    "prefix_open_before": "[0, k) visual rows see the text before them, text sees them",
    "alone_before": "[0, k) hidden from text, visual rows isolated",
    "masked_before": "[0, k) hidden from text",
    "self_before": "[0, k) visual rows isolated, text sees them",
    "merged_before": "layer 0 merged, [1, k) hidden",
    "masked_from": "dropped from layer k on",
    "skipped": "layer k alone hidden",
}
#: Curves that say up to where text does without the image, the rule that plans use first.
_HIDING = ("prefix_before", "alone_before")
_WAYS = ("prefix_before", "prefix_open_before", "alone_before", "self_before", "merged_before", "masked_before")


def section(subject: Subject) -> Section:
    """Agreement with the dense model while the image is hidden in some layers, and the layers that follow from it."""
    values = subject.values
    curves = {name: values[name] for name in MEANINGS if name in values}
    pictures = []
    for names, caption in (
        ((hiding_curve(curves) or "alone_before", "masked_from"),
         "Share of first answer tokens that stay the same, with 95 % intervals, when the image is hidden from the text "
         "before layer k, or dropped from layer k on. The image is read between the fall of the first curve "
         "and the rise of the second."),
        (_WAYS,
         "Cheaper ways to run the layers before k. Where the curves diverge, the model needs "
         "what the lower one drops."),
        (("skipped", "masked_from"),
         "Hiding the image in layer k alone, and dropping it from layer k on. Where only the first is harmless, later "
         "layers still read the image."),
    ):  # fmt: skip
        chosen = {name: curves[name] for name in names if name in curves}
        if chosen:
            pictures.append(Picture(caption, _drawing(chosen, subject)))
    if "uncached" in values:
        pictures.append(
            Picture(
                f"Generated text cannot attend to visual keys and values in these layers: share of answers "
                f"({subject.probe.settings['answer_tokens']} tokens) that stay the same.{_undecoded(subject)}",
                lambda: charts.bars(_ranges(values), {"answers": series(values["uncached"]["agreement"])},
                                    xlabel="layers without visual KV cache", ylabel="same answer", share=True),
            )
        )  # fmt: skip
    return Section(
        "masking",
        "Where the text needs the image",
        "The model runs with the image hidden from the text in one range of layers after another, and its first answer "
        "token is compared with the dense model's (VisiPruner, figure 3, tables 2 and 10). Suggested filter and exit "
        f"layers are checked against these curves; a point counts as below the limit of {percent(subject.limit)} where "
        f"even its interval's upper end is.{_bisected(subject, curves)}{_left_out(values)}",
        _findings(subject, curves),
        pictures,
        [table for table in (_checks(subject, curves), *_tables(curves)) if table.rows],
    )


def _drawing(chosen: Mapping[str, Any], subject: Subject) -> Any:
    xs = sorted({k for curve in chosen.values() for k in curve["k"]})

    def spread(curve: Any) -> Series:
        """The curve over all k of the picture: straight between its points, NaN outside of them."""
        found, ks = series(curve["agreement"]), curve["k"]
        return Series(*(np.interp(xs, ks, one, left=math.nan, right=math.nan).tolist() for one in found))

    drawn = {_short(name): spread(curve) for name, curve in chosen.items()}
    if len(drawn) > 2:  # more intervals than two hide each other
        drawn = {name: exact(found.value) for name, found in drawn.items()}
    return lambda: charts.lines(xs, drawn, xlabel="layer k", ylabel="same first token", marks=subject.marks, share=True,
                                level=(f"limit {percent(subject.limit)}", subject.limit))  # fmt: skip


def _findings(subject: Subject, curves: Mapping[str, Any]) -> list[str]:
    found, limit = [], subject.limit
    hiding, blind, done = hiding_curve(curves), reads_from(curves, limit), done_from(curves, limit)
    if hiding is not None and blind is not None:
        curve = curves[hiding]
        if blind == 0:
            found.append(f"The image is read from layer 0 on: hidden there, only "
                         f"{percent(curve['agreement'][0]['value'])} of the answers stay the same.")  # fmt: skip
        else:
            deeper = next((k for k in curve["k"] if k > blind), None)
            fall = f"; hidden before layer {deeper}, {percent(_at(curve, deeper))}" if deeper is not None else ""
            found.append(f"Text does not need the image before layer {blind}: hidden there, "
                         f"{percent(_at(curve, blind))} of the answers stay the same{fall}.")  # fmt: skip
    if done is not None:
        curve, before = curves["masked_from"], _at(curves["masked_from"], done - 1)
        if done > curve["k"][-1]:
            found.append(f"It is needed to the end: dropped from layer {curve['k'][-1]} on, "
                         f"{percent(curve['agreement'][-1]['value'])} stay the same.")  # fmt: skip
        else:
            cost = f"; dropped from layer {done - 1} on, {percent(before)}" if before is not None else ""
            found.append(f"Dropped from layer {done} on, {percent(_at(curve, done))} stay the same{cost}.")
    reading = window(curves, limit)
    if reading is not None:
        first, last = reading
        found.append(f"So {last - first} of {subject.layers} layers read the image: [{first}, {last}).")
    accuracy = subject.values["dense_first_token_accuracy"]
    if accuracy["n"]:
        found.append(
            f"The dense model's first token is right for {percent(accuracy['value'])} of {accuracy['n']} answers."
        )
    return found


def window(values: Mapping[str, Any], limit: float = Subject.limit) -> tuple[int, int] | None:
    """Layers ``[first, last)`` in which the image is read; None where the curves do not say."""
    blind, done = reads_from(values, limit), done_from(values, limit)
    return (blind, done) if blind is not None and done is not None and blind < done else None


def reads_from(curves: Mapping[str, Any], limit: float) -> int | None:
    """Most first layers that can be closed, each count before it included, with agreement not below the limit; None
    without a curve that says so."""
    name = hiding_curve(curves)
    if name is None:
        return None
    last = 0
    for k, entry in zip(curves[name]["k"], curves[name]["agreement"], strict=True):
        if entry["high"] < limit:
            break
        last = k
    return last


def hiding_curve(curves: Mapping[str, Any]) -> str | None:
    """The curve that says up to where text does without the image; None where none was measured."""
    return next((name for name in _HIDING if name in curves), None)


def done_from(curves: Mapping[str, Any], limit: float) -> int | None:
    """First layer from which the image, there and at every later layer, can be dropped; None without that curve."""
    if "masked_from" not in curves:
        return None
    curve = curves["masked_from"]
    first: int = curve["k"][-1] + 1
    for k, entry in zip(reversed(curve["k"]), reversed(curve["agreement"]), strict=True):
        if entry["high"] < limit:
            break
        first = k
    return first


def _at(curve: Any, k: int) -> float | None:
    entry = _entry(curve, k)
    return None if entry is None else entry["value"]


def _entry(curve: Any, k: int) -> Any:
    """The agreement at a layer; between points, where a bisected curve does not change, that of the point before."""
    inside = [entry for place, entry in zip(curve["k"], curve["agreement"], strict=True) if place <= k]
    return inside[-1] if inside and k <= curve["k"][-1] else None


def _bisected(subject: Subject, curves: Mapping[str, Any]) -> str:
    everywhere = all(
        len(curve["k"]) == curve["k"][-1] - curve["k"][0] + 1
        and min(curve.get("measured", [subject.probe.n])) == subject.probe.n
        for name, curve in curves.items()
        if name in _WAYS
    )
    if everywhere:
        return ""
    return (
        " The curves of shallow layers were bisected, sample by sample: between two executed points with the same "
        "outcome an answer is taken to have it too. Only points that were executed are listed; accuracy and divergence "
        "stand where every sample was."
    )


def _left_out(values: Mapping[str, Any]) -> str:
    if "left_out" not in values:
        return ""
    named = ", ".join(values["left_out"])
    return (
        " Every point was executed as a plan, since some layers keep states or read the keys of others; what these "
        f"cannot run is not measured ({named}, and layers between the points of other curves)."
    )


def _undecoded(subject: Subject) -> str:
    nothing = subject.values["uncached"].get("nothing_decoded", 0)
    if not nothing:
        return ""
    if nothing == subject.probe.n:
        return " No answer has a second token, so that nothing was decoded: this says nothing."
    return f" {nothing} of {subject.probe.n} answers have no second token: nothing was decoded, and they are left out."


def _checks(subject: Subject, curves: Mapping[str, Any]) -> Table:
    """Filter and exit layers that influence suggests, judged by the curves: contradicted where even the interval's
    upper end is below the limit."""
    rows = []
    for level, stage in subject.suggested.items():
        for key, name in (("filter", hiding_curve(curves)), ("exit", "masked_from")):
            entry = _entry(curves[name], stage[key]) if name is not None and name in curves else None
            if entry is None:
                continue
            verdict = "contradicted" if entry["high"] < subject.limit else (
                "confirmed" if entry["value"] >= subject.limit else "doubtful")  # fmt: skip
            rows.append([f"{key} {stage[key]}", f"{percent(float(level))} of the samples", shown(entry, True), verdict])
    return Table("What influence suggests, and what the curves say of it",
                 ("suggested layer", "to fit", "agreement there (95 %)", "verdict"), rows)  # fmt: skip


def _tables(curves: Mapping[str, Any]) -> list[Table]:
    """What each condition does at each k, one table a measure."""

    def table(title: str, cell: Callable[[Any, int], str]) -> Table:
        ks = sorted({k for curve in curves.values() for k in curve["k"]})
        rows = [
            [f"k = {k}", *(cell(curve, curve["k"].index(k)) if k in curve["k"] else "" for curve in curves.values())]
            for k in ks
        ]
        return Table(title, ("", *(_short(name) for name in curves)), rows)

    found = [table("Same first token as the dense model (95 %)", lambda curve, i: shown(curve["agreement"][i], True))]
    if any(entry and entry["n"] for curve in curves.values() for entry in curve["first_token_accuracy"]):
        found.append(table("Right first token (95 %)", lambda curve, i: shown(curve["first_token_accuracy"][i], True)))
    found.append(table("KL divergence from the dense model, nats", lambda curve, i: _nats(curve["kl"]["value"][i])))
    if any("measured" in curve for curve in curves.values()):
        found.append(
            table("Samples executed", lambda curve, i: f"{curve['measured'][i]}" if "measured" in curve else "")
        )
    return found


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(name: str) -> str:
    return MEANINGS[name].partition(" (")[0]


def _ranges(values: Any) -> list[str]:
    return [f"[{first}, {last})" for first, last in values["uncached"]["ranges"]]
