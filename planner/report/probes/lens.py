"""The answering token's hidden state as words, layer by layer."""

from __future__ import annotations

from planner.report import charts
from planner.report.section import (
    Picture,
    Section,
    Subject,
    Table,
    figure,
    highest,
    per_layer_table,
    percent,
    series,
    shown,
)

#: Words of a layer that a table shows.
_WORDS = 5


def section(subject: Subject) -> Section:
    """When the answer appears and settles, and the words on the way."""
    values = subject.values
    drawn = {"most probable": series(values["answer_first"]), "its probability": series(values["answer_probability"])}
    layers = list(range(subject.layers))
    return Section(
        "lens",
        "When is the answer there?",
        "The hidden state of the last prompt token after each layer, read through the final norm and the output "
        "embedding (logit lens; VisiPruner 5.2): from which layer on is the model's own first answer token the most "
        "probable word, and which words come before it?",
        _findings(subject),
        [
            Picture(
                "Share of samples in which the model's own first answer token is the most probable word after a layer, "
                "and its mean probability there, with 95 % intervals.",
                lambda: charts.lines(layers, drawn, xlabel="decoder layer", ylabel="samples, probability", share=True,
                                     marks=subject.marks),
            )
        ],
        [*_words(subject), per_layer_table("Per layer (95 %)", drawn, True)],
    )  # fmt: skip


def _findings(subject: Subject) -> list[str]:
    values = subject.values
    settles, first = values["settling_layer"], series(values["answer_first"]).value
    found = [
        f"The answer settles after layer {shown(settles)} on average (layer {figure(settles['quantiles']['0.5'])} for "
        f"half of the samples, {figure(settles['quantiles']['0.95'])} for 95 %): from there on the following layers do "
        "not change the first word."
    ]
    steps = [late - early for early, late in zip([0.0, *first], first, strict=False)]
    at = highest(steps)
    found.append(f"The largest step is layer {at}, which makes it the first word in {percent(steps[at])} more samples.")
    return found


def _words(subject: Subject) -> list[Table]:
    values = subject.values
    tables = [
        Table(
            "Words that most samples have among the first, per layer",
            ("after layer", "words"),
            [[str(layer), ", ".join(words)] for layer, words in enumerate(values["words"])],
            True,
        )
    ]
    for one in values["examples"]:
        rows = [[str(layer), ", ".join(filter(None, words[:_WORDS]))] for layer, words in enumerate(one["layers"])]
        title = f"Most probable words: {one['prompt']!r}, answered {one['answer']!r}"
        tables.append(Table(title, ("after layer", "words, most probable first"), rows, True))
    return tables
