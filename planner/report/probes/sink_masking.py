"""Do visual sink tokens matter? Hidden from the text, beside as many random visual tokens."""

from __future__ import annotations

from planner.report import charts
from planner.report.charts import Series
from planner.report.section import Picture, Section, Subject, Table, figure, numbers, percent, shown

_CONDITIONS = {"sinks": "hot visual tokens hidden", "random": "as many random visual tokens hidden"}


def section(subject: Subject) -> Section:
    """Agreement and divergence with sinks hidden, and with random tokens hidden."""
    values = subject.values
    measured = values["sinks"]["agreement"]["value"] is not None
    agreement, divergence = ([values[name][what] for name in _CONDITIONS] for what in ("agreement", "kl"))

    def series_of(entries: list[dict[str, float | None]]) -> Series:
        return Series(*(numbers([entry[name] for entry in entries]) for name in ("value", "low", "high")))

    names = ["hot tokens", "random tokens"]
    pictures = [
        Picture(
            "First answer tokens that stay the dense model's while these visual tokens are hidden from the text, with "
            "95 % intervals.",
            lambda: charts.bars(names, {"samples": series_of(agreement)}, xlabel="hidden from the text",
                                ylabel="same first token", share=True),
        ),
        Picture(
            "How far the distribution of the first answer token moves (Kullback-Leibler divergence), with 95 % "
            "intervals.",
            lambda: charts.bars(names, {"samples": series_of(divergence)}, xlabel="hidden from the text",
                                ylabel="divergence, nats"),
        ),
    ]  # fmt: skip
    rows = [
        [text, shown(values[name]["agreement"], True), shown(values[name]["kl"])] for name, text in _CONDITIONS.items()
    ]
    return Section(
        "sink_masking",
        "Do visual sinks matter?",
        "Two kinds of visual tokens are hidden from the text in turn: those that are hot (some hidden dimension far "
        "above their norm) in at least half of the layers from the third on, and as many random other ones (VAR). "
        "Sinks are hot in always the same dimensions; hiding them should be harmless, hiding random tokens should not.",
        _findings(subject, measured),
        pictures if measured else [],
        [Table("Hidden from the text", ("condition", "same first token (95 %)", "KL divergence, nats (95 %)"), rows)]
        if measured
        else [],
    )


def _findings(subject: Subject, measured: bool) -> list[str]:
    values, n = subject.values, subject.probe.n
    if not measured:
        return [f"None of {n} samples has a visual token that is hot often enough, so nothing could be hidden."]
    sinks, random = (values[name]["agreement"]["value"] for name in _CONDITIONS)
    far, other = (values[name]["kl"]["value"] for name in _CONDITIONS)
    verdict = "no difference in the answers" if sinks == random else (
        "they matter less than other tokens" if sinks > random else "they matter more than other tokens")  # fmt: skip
    return [
        f"With {figure(values['visual_sinks']['value'])} hot visual tokens hidden on average, {percent(sinks)} of the "
        f"first answer tokens stay; with as many random visual tokens hidden, {percent(random)}: {verdict} "
        f"(divergence {figure(far, 2)} against {figure(other, 2)} nats).",
        f"{values['samples_without']} of {n} samples have no such token and are left out.",
    ]
