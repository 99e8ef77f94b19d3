"""Head attribution: which heads carry the image into the answer, and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from planner.report import charts
from planner.report.charts import exact
from planner.report.section import (
    Picture,
    Section,
    Subject,
    Table,
    figure,
    numbers,
    percent,
    series,
    shown,
)

ORDER_NAMES = {
    "attribution": "by attribution",
    "attention": "by attention",
    "causal": "by single-head effect",
    "random": "random",
}
#: Heads in tables and frames, and words per head.
_TOP, _WORDS = 10, 8


def section(subject: Subject) -> Section:
    """Coefficients of heads, how well they explain, curves against other orders, tokens, and words of the top heads."""
    values = subject.values
    about = (
        "A linear model of the answer's logit: thousands of random sets of heads read the mean image instead of the "
        "image, and a head's coefficient is what reading the image through it adds (1 is the whole effect of the "
        "image; head attribution). Faithfulness is the logit with only the first k heads intact, completeness the "
        "logit with those ablated."
    )
    if not values.get("attributed"):
        return Section("attribution", "Heads that carry the image", about, [_looked_at(subject)])
    tables = [_quality(values), _needed(values), _top_heads(values), *(_words(values) if "words" in values else ())]
    return Section("attribution", "Heads that carry the image", about, _findings(subject), _pictures(subject), tables)


def _looked_at(subject: Subject) -> str:
    values = subject.values
    return (
        f"{values['attributed'] or 'None'} of {subject.probe.n} samples "
        f"{'was' if values['attributed'] == 1 else 'were'} attributed; {values['answered_wrongly'] or 'none'} answered "
        f"wrongly, {values['image_independent'] or 'none'} answered without needing the image."
    )


def _coefficients(values: Mapping[str, Any]) -> np.ndarray:
    return np.asarray([numbers(row) for row in values["coefficients"]["value"]])


def _findings(subject: Subject) -> list[str]:
    values = subject.values
    coefficients = _coefficients(values)
    total, top = coefficients.size, values["top_heads"][0]
    level, by_order = _level(values, "faithfulness")
    needed, random = by_order["attribution"]["value"], by_order["random"]["value"]
    layer = int(np.maximum(coefficients, 0).sum(axis=1).argmax())
    share = np.maximum(coefficients, 0).sum(axis=1)[layer] / max(np.maximum(coefficients, 0).sum(), 1e-12)
    correlation = values["attention_correlation"]
    return [
        f"{figure(needed)} of {total} heads {'suffices' if needed == 1 else 'suffice'} for {percent(level)} of the "
        f"image's effect on the answer; in random order it takes {figure(random)}. Layer {layer} holds "
        f"{percent(float(share))} of the attribution; the strongest is head {top[1]} of layer {top[0]} "
        f"({coefficients[top[0], top[1]]:.2f}).",
        f"The linear model explains {percent(values['r2']['value'])} of the held-out variance (R² "
        f"{shown(values['r2'])}, Pearson r {shown(values['pearson'])}).",
        f"Attention is {_strength(correlation['value'])} for what a head does: the correlation of a head's attention "
        f"on the image with its attribution is {shown(correlation, digits=2)}.",
        *_clusters(values),
        _looked_at(subject),
    ]


def _clusters(values: Mapping[str, Any]) -> list[str]:
    """Heads that most samples use, and those that some do."""
    found = values.get("clusters")
    if found is None or len(found["clusters"]) < 2:
        return []
    common, special = found["clusters"]
    return [
        f"Clustered by the samples that use them, heads fall into {len(common['heads'])} that "
        f"{percent(common['used_by'])} of the samples use on average, and {len(special['heads'])} used by "
        f"{percent(special['used_by'])}: the former whatever the sample, the latter by its content."
    ]


def _level(values: Mapping[str, Any], what: str) -> tuple[float, Mapping[str, Any]]:
    """The level of faithfulness or completeness that heads are needed for, and how many by order."""
    for name, by_order in values["heads_needed"].items():
        measure, _, level = name.split()
        if measure == what:
            return float(level), by_order
    raise KeyError(what)


def _strength(correlation: float | None) -> str:
    size = abs(correlation or 0.0)
    return "no proxy" if size < 0.3 else "a weak proxy" if size < 0.7 else "a good proxy"


def _pictures(subject: Subject) -> list[Picture]:
    values = subject.values
    coefficients = _coefficients(values)
    frames = [(layer, head) for layer, head in values["top_heads"][:_TOP]]
    found = [
        Picture(
            f"Each head's coefficient, mean over samples; the {len(frames)} strongest are framed.",
            lambda: charts.heat(coefficients.tolist(), label="coefficient", diverging=True, framed=frames),
        ),
        Picture(
            "Share of samples in which a head is among those needed for the image's effect: how stable the set is.",
            lambda: charts.heat([numbers(row) for row in values["needed_share"]], label="samples", low=0, high=1),
        ),
    ]
    for what, caption in (
        ("faithfulness",
         "Faithfulness: the image's effect with only the first k heads intact. Steeper is better; shaded: the 95 % "
         "interval of the order by attribution."),
        ("completeness",
         "Completeness: what is left of it with the first k heads ablated. A faster fall is better."),
    ):  # fmt: skip
        found.append(Picture(caption, _curve(values, what)))
    attention = subject.rows("image_attention")
    attributed = [row for row in attention if not np.isnan(row).any()]
    if attributed:
        mean = np.mean(attributed, axis=0)
        pairs = list(zip(mean.ravel().tolist(), coefficients.ravel().tolist(), strict=True))
        found.append(
            Picture(
                "Each head's attention on the image against its attribution, mean over samples. A proxy would lie on "
                "a line.",
                lambda: charts.points({"heads": pairs}, xlabel="attention on the image", ylabel="coefficient"),
            )
        )
    clusters = values.get("clusters")
    if clusters is not None:
        found.append(
            Picture(
                "Coefficients of the heads that some sample uses, a column for each head and a row for each sample, in "
                "the order of a hierarchical clustering. Columns dark throughout are used whatever the sample.",
                lambda: charts.heat(clusters["vectors"], label="coefficient", diverging=True,
                                    xlabel="head, clustered", ylabel="sample"),
            )
        )  # fmt: skip
    effects = [row for row in subject.rows("text_effects") if len(row)]
    if effects:
        found.append(_token_effects(effects))
    return found


def _curve(values: Mapping[str, Any], what: str) -> Callable[[], str]:
    curves = values["curves"]
    drawn = {text: series(curves[order][what]) for order, text in ORDER_NAMES.items() if order in curves}
    # One interval: four would hide each other.
    drawn = {text: found if text == ORDER_NAMES["attribution"] else exact(found.value) for text, found in drawn.items()}
    at, _ = _level(values, what)
    level = (percent(at), at)
    return lambda: charts.lines(curves["heads"], drawn, xlabel="heads k", ylabel=what, level=level)


def _token_effects(effects: Sequence[np.ndarray]) -> Picture:
    """Mean loss per position from the prompt's end: positions that all samples have."""
    shortest = min(len(row) for row in effects)
    table = np.stack([row[-shortest:] for row in effects])
    names = [str(position) for position in range(-shortest + 1, 1)]
    return Picture(
        "How much of the effect is lost when one text token after the image may not read it, by position from the end "
        "of the prompt (0 is the token that answers); mean over samples.",
        lambda: charts.bars(names, {"loss": exact(table.mean(axis=0).tolist())}, xlabel="position from the end",
                            ylabel="share of the effect lost"),
    )  # fmt: skip


def _quality(values: Mapping[str, Any]) -> Table:
    rows = [
        ["held-out R²", shown(values["r2"])],
        ["held-out Pearson r", shown(values["pearson"])],
        ["masks used", shown(values["masks_used"], digits=5)],
        ["correlation with attention on the image, heads", shown(values["attention_correlation"])],
        ["text tokens that receive the image", shown(values["receiving_text_tokens"])],
        ["effect left when only those receive it", shown(values["text_tokens_suffice"])],
        ["held-out R² over image tokens", shown(values["image_r2"])],
        ["correlation with attention, image tokens", shown(values["image_attention_correlation"])],
        *([f"cosine of coefficients, {name.replace('_', ' ')}", figure(value)]
          for name, value in sorted(values["cosine"].items()) if value is not None),
    ]  # fmt: skip
    return Table("How well it explains (95 %)", ("measure", "mean over samples"), [row for row in rows if row[1]])


def _needed(values: Mapping[str, Any]) -> Table:
    needed = dict(sorted(values["heads_needed"].items(), reverse=True))  # faithfulness before completeness
    rows = [[text, *(shown(by_order[order]) for by_order in needed.values())] for order, text in ORDER_NAMES.items()]
    return Table("Heads needed, by order (95 %)", ("order", *needed), rows)


def _top_heads(values: Mapping[str, Any]) -> Table:
    entry = values["coefficients"]
    rows = [
        [f"layer {layer}, head {head}",
         shown({name: entry[name][layer][head] for name in ("value", "low", "high")}),
         percent(values["needed_share"][layer][head])]
        for layer, head in values["top_heads"][:_TOP]
    ]  # fmt: skip
    return Table("Strongest heads", ("head", "coefficient (95 %)", "needed in samples"), rows)


def _words(values: Mapping[str, Any]) -> list[Table]:
    """What the strongest heads write into the answering token, and which text tokens receive the image."""
    words = [
        [f"layer {one['layer']}, head {one['head']}", str(one["samples"]), ", ".join(one["words"][:_WORDS])]
        for one in values["words"]
    ]
    tokens = [[one["token"], f"{one['effect']:.3f}", str(one["occurrences"])] for one in values["text_tokens"]]
    return [
        Table("Words the strongest heads point to (logit lens)", ("head", "on top in samples", "words"), words, True),
        Table(
            "Text tokens that receive the image: share of the effect lost when one alone may not read it",
            ("token", "effect lost", "occurrences"),
            tokens,
        ),
    ]
