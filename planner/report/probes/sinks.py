"""Attention sinks: massive hidden dimensions, the tokens that carry them, and what heads make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planner.report import charts
from planner.report.charts import Series
from planner.report.section import (
    Picture,
    Section,
    Subject,
    Table,
    count,
    figure,
    highest,
    layer_names,
    per_layer_table,
    percent,
    series,
    shown,
)


def section(subject: Subject) -> Section:
    """Sink dimensions and tokens, image-centric and sink heads, and attention on the first token."""
    values = subject.values
    layers = list(range(subject.layers))
    attention = {
        "image": series(values["visual_attention"]),
        "first token": series(values["first_token_attention"]),
    }
    pictures = [
        Picture(
            "Attention of the last prompt token, mean over heads: on the image, and on the prompt's first token, where "
            "models put attention that they do not need.",
            lambda: charts.lines(layers, attention, xlabel="decoder layer", ylabel="attention", share=True),
        )
    ]
    tokens = _token_shares(subject)
    if any(np.nanmax(found.value) > 0 for found in tokens.values()):
        pictures.append(
            Picture(
                "Share of visual and of text tokens (the first token left out) that are sinks, with 95 % intervals.",
                lambda: charts.lines(layers, tokens, xlabel="decoder layer", ylabel="tokens", share=True, zoom=True),
            )
        )
    for title, heads in _head_lists(subject).items():
        if heads["heads"]:
            pictures.append(_map(subject, title, heads))
    place = (values.get("visual_sinks") or {}).get("place")
    if place is not None:
        pictures.append(
            Picture(
                "Where visual sinks are in the picture: each place's share of all of them, over samples and layers.",
                lambda: charts.pictures({"": place["map"]}, label="share of the sinks"),
            )
        )
    mass = subject.rows("visual_mass")
    if mass:
        pictures.append(
            Picture(
                "Share of each head's attention that goes to the image, mean over samples.",
                lambda: charts.heat(np.mean(mass, axis=0).tolist(), label="attention on the image", low=0, high=1),
            )
        )
    return Section(
        "sinks",
        "Attention sinks",
        "Tokens with a massive value in some hidden dimension are attention sinks: they receive much attention and "
        "contribute little (VAR). Dimensions, tokens and heads are detected, not configured. A head is image-centric "
        "if much of its attention goes to image tokens that are not sinks, and a sink head if most of its image "
        "attention goes to sinks.",
        [*values.get("notes", ()), *_findings(subject)],
        pictures,
        [_heads_table(subject), *_sink_heads(values), *_given_table(values)],
    )


def _token_shares(subject: Subject) -> dict[str, Series]:
    """Sink tokens per layer over how many tokens of the kind there are."""
    prompt = subject.prompt
    totals = {
        "text": max(prompt.system_tokens + prompt.text_tokens - 1, 1),
        "visual": max(prompt.visual_tokens, 1),
    }
    counts = {kind: series(subject.values["sink_tokens"][kind]) for kind in totals}
    return {kind: Series(*([value / totals[kind] for value in one] for one in counts[kind])) for kind in totals}


def _head_lists(subject: Subject) -> dict[str, Any]:
    """Image-centric heads at the middle rho, and sink heads."""
    rhos = subject.probe.settings["rho"]
    rho = rhos[len(rhos) // 2]
    return {
        f"Image-centric heads (at least {percent(rho)} of their image attention on tokens that are no sinks)":
            subject.values["image_centric_heads"][f"rho {rho:g}"],
        f"Sink heads (at least {percent(subject.probe.settings['rho_sink'])} of their image attention on sinks)":
            subject.values["sink_heads"],
    }  # fmt: skip


def _map(subject: Subject, title: str, found: Mapping[str, Any]) -> Picture:
    cells = np.full((subject.layers, subject.heads), np.nan)
    for head in found["heads"]:
        cells[head["layer"], head["head"]] = head["samples"]["value"]
    caption = (
        f"{title}: share of samples in which each head is one; blank heads are in fewer than "
        f"{percent(subject.probe.settings['most'])}. {_stability(found)}"
    )
    return Picture(caption, lambda: charts.heat(cells.tolist(), label="samples", low=0, high=1))


def _stability(found: Mapping[str, Any]) -> str:
    overlap = found["split_half_overlap"]
    if overlap is None:
        return "Too few samples to tell how stable the set is."
    return f"Two halves of the samples agree on {percent(overlap)} of the heads that either names."


def _findings(subject: Subject) -> list[str]:
    values = subject.values
    dims, tau = values["sink_dims"], values["tau"]
    attention, first = series(values["visual_attention"]).value, series(values["first_token_attention"]).value
    top, low = highest(first), highest(attention)
    last = (
        f"The last token looks at the image most in layer {low} ({percent(attention[low])}), at the first token most "
        f"in layer {top} ({percent(first[top])})."
    )
    compared = _compared(subject)
    if not dims:
        return [
            f"No hidden dimension is massive (none reaches {figure(tau)} times a token's root mean square in most "
            f"middle layers; {figure(values['largest_possible'])} is the most possible), so this model has no sink "
            "tokens.",
            last,
            *compared,
        ]
    names = ", ".join(map(str, dims))
    visual = series(values["sink_tokens"]["visual"]).value
    most = highest(visual)
    first_hot = series(values["sink_tokens"]["first token"]).value
    sinks = values["sink_heads"]["heads"]
    return [
        f"Hidden {'dimension' if len(dims) == 1 else 'dimensions'} {names} {'is' if len(dims) == 1 else 'are'} "
        f"massive; {percent(values['samples_with_visual_sinks']['value'])} of {subject.probe.n} samples have visual "
        f"sink tokens, at most {figure(visual[most])} on average (layer {most}). The prompt's first token is one in "
        f"{layer_names([i for i, share in enumerate(first_hot) if share >= 0.5])} for most samples.",
        f"{count(len(sinks), 'head is a sink head', 'heads are sink heads').capitalize()}. "
        f"{_stability(values['sink_heads'])}",
        *_given(values),
        last,
        *compared,
    ]


def _given(values: Mapping[str, Any]) -> list[str]:
    """What visual sinks take and give, in the layer where they take most, and where they are."""
    found = values.get("visual_sinks")
    if found is None:
        return []
    tokens, taken, gives = (series(found[name]).value for name in ("of_tokens", "of_attention", "of_contribution"))
    at = highest(taken)
    verdict = "less than their share of the attention" if gives[at] < taken[at] else "no less than that"
    said = [
        f"Visual sinks are {percent(tokens[at])} of the visual tokens in layer {at}, where they take most: "
        f"{percent(taken[at])} of the image's attention, and {percent(gives[at])} of what its tokens contribute to the "
        f"last token's attention output: {verdict}."
    ]
    place = found["place"]
    if place is not None:
        side = "more" if place["on_border"] > place["border"] else "no more"
        said.append(
            f"{percent(place['on_border'])} of them are on the outermost ring of the picture, {side} than the "
            f"{percent(place['border'])} of its places that are there."
        )
    return said


def _compared(subject: Subject) -> list[str]:
    """Sink and image-centric heads beside the heads that attribution finds to carry the image."""
    attribution = subject.others.get("attribution")
    if attribution is None or not attribution.values.get("attributed"):
        return []
    carry = [(layer, head) for layer, head in attribution.values["top_heads"]]
    said = []
    centric, sinks = _head_lists(subject).values()
    for one, several, found in (("a sink head", "sink heads", sinks), ("image-centric", "image-centric", centric)):
        theirs = {(entry["layer"], entry["head"]) for entry in found["heads"]}
        shared = [head for head in carry if head in theirs]
        named = ", ".join(f"layer {layer} head {head}" for layer, head in shared)
        what = f"is {one}" if len(shared) == 1 else f"are {several}"
        said.append(f"{len(shared) or 'none'} {what}{f' ({named})' if named else ''}")
    return [f"Of the {len(carry)} heads that attribution finds to carry the image most, {' and '.join(said)}."]


def _heads_table(subject: Subject) -> Table:
    total = subject.layers * subject.heads
    lists = {f"image-centric, {name}": found for name, found in sorted(subject.values["image_centric_heads"].items())}
    lists["sink heads"] = subject.values["sink_heads"]
    rows = [
        [name, f"{len(found['heads'])} of {total}",
         "" if found["split_half_overlap"] is None else f"{found['split_half_overlap']:.2f}"]
        for name, found in lists.items()
    ]  # fmt: skip
    return Table("Heads and how stable their set is", ("kind", "heads", "overlap of two halves of the samples"), rows)


def _given_table(values: Mapping[str, Any]) -> list[Table]:
    found = values.get("visual_sinks")
    if found is None:
        return []
    columns = {
        "of the visual tokens": series(found["of_tokens"]),
        "of the image's attention": series(found["of_attention"]),
        "of the image's contribution": series(found["of_contribution"]),
    }
    return [per_layer_table("Visual sinks: their share (95 %)", columns, True)]


def _sink_heads(values: Mapping[str, Any]) -> list[Table]:
    rows = [
        [f"layer {head['layer']}, head {head['head']}", shown(head["samples"], True),
         figure(head.get("sink_share", {}).get("0.5"))]
        for head in values["sink_heads"]["heads"]
    ]  # fmt: skip
    headers = ("sink head", "share of samples (95 %)", "median sink share of its image attention")
    return [Table("Sink heads", headers, rows)] if rows else []
