"""Context pruning: how much of a long text beside the image can go, and what that does to attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planner.context_rate import RateFit
from planner.report import charts
from planner.report.charts import Series, exact
from planner.report.probes import survivors
from planner.report.section import Picture, Section, Subject, Table, figure, numbers, percent, series, shown

_FLOWS = {
    "S_vr": "image to kept text", "S_vc": "image to pruned text", "S_rt": "kept text to answer",
    "S_ct": "pruned text to answer", "S_vt": "image to answer", "S_ww": "all other pairs",
}  # fmt: skip

_RANKINGS = {"max": "largest over heads", "mean": "mean over heads", "random": "at random"}


def section(subject: Subject) -> Section:
    """Accuracy over rates and lengths, the best rate with its fit, variants, entropy, visual dependency, flow."""
    values = subject.values
    lengths = [round(length) for length in values["lengths"]]
    pictures = [
        Picture(
            f"{_judge(values).capitalize()} at each share of the context dropped, for contexts of {_listed(lengths)} "
            "tokens.",
            lambda: _rates(values, lengths),
        ),
        Picture(_fit_caption(values), lambda: _best(values)),
        Picture(
            "Ranking by the largest or the mean attention over heads, at random, and pruning over fewer or more "
            "layers or deeper ones, all at the default rate: first answer tokens that stay the dense model's.",
            lambda: _compared(values, lengths),
        ),
        Picture(
            "Visual dependency: attention of the answering token on the image, mean over layers and heads, against "
            "context length, with 95 % intervals. Longer contexts take attention away from the image; pruning "
            "returns some of it.",
            lambda: charts.lines(lengths, {"dense": series(values["visual_dependency"]["dense"]),
                                           "pruned": series(values["visual_dependency"]["pruned"])},
                                 xlabel="context, tokens", ylabel="attention on the image"),
        ),
        Picture(
            f"Entropy of the attention of question and role tokens at the longest context ({lengths[-1]} tokens), "
            "before and after pruning. It should not rise.",
            lambda: charts.lines(list(range(subject.layers)), _longest(values["entropy"]), xlabel="decoder layer",
                                 ylabel="entropy, nats"),
        ),
    ]  # fmt: skip
    pictures += survivors.pictures(subject)
    if values.get("flow"):
        pictures.append(
            Picture(
                f"Information flow at the longest context ({lengths[-1]} tokens): attention times gradient, mean over "
                "pairs, dense (solid) and pruned (dashed), logarithmic.",
                lambda: charts.lines(list(range(subject.layers)), _flow(values["flow"]), xlabel="decoder layer",
                                     ylabel="flow", log=True, pairs=True),
            )
        )  # fmt: skip
    return Section(
        "context",
        "Pruning long text beside the image",
        "The question is asked after contexts of several lengths. The context tokens that receive the least attention "
        "are dropped in the first layers; visual tokens and the question stay (context pruning). The best rate is the "
        "middle one of the three adjacent rates with the best results; a plan with rate=auto uses its fit against "
        "length.",
        [*_findings(subject, lengths), *survivors.findings(values, lengths)],
        pictures,
        [
            _best_table(values, lengths),
            _variants(values, lengths),
            _grid(values, lengths),
            *survivors.tables(values, lengths),
        ],
    )


def _judge(values: Mapping[str, Any]) -> str:
    return "first tokens that answer right" if values["judged_by"] == "first_token_accuracy" else "same first token"


def _listed(lengths: list[int]) -> str:
    return f"{', '.join(map(str, lengths[:-1]))} and {lengths[-1]}" if len(lengths) > 1 else str(lengths[0])


def _rates(values: Mapping[str, Any], lengths: list[int]) -> str:
    chosen = values[values["judged_by"]]
    drawn = {f"{length} tokens": exact(series(row).value) for length, row in zip(lengths, chosen, strict=True)}
    return charts.lines(values["rates"], drawn, xlabel="share of the context dropped", ylabel=_judge(values),
                        share=True, whole=False)  # fmt: skip


def _best(values: Mapping[str, Any]) -> str:
    measured = list(zip(values["lengths"], values["best_rates"], strict=True))
    curve: list[tuple[float, float]] = []
    if "coefficients" in values["fit"]:
        fit = RateFit.from_json(values["fit"])
        curve = [(float(x), fit.rate(x)) for x in np.linspace(fit.shortest, fit.longest, 60)]
    return charts.points({"best rate measured": measured}, xlabel="context, tokens", ylabel="share dropped",
                         curve=curve, curve_name="quadratic fit", share=True)  # fmt: skip


def _by_name(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Variants: rankings first, then depths."""
    return sorted(values["variants"].items(), key=lambda variant: (variant[0] not in _RANKINGS, variant[0]))


def _compared(values: Mapping[str, Any], lengths: list[int]) -> str:
    drawn = {_RANKINGS.get(name, name): exact(series(one["agreement"]).value) for name, one in _by_name(values)}
    return charts.lines(lengths, drawn, xlabel="context, tokens", ylabel="same first token", share=True)


def _fit_caption(values: Mapping[str, Any]) -> str:
    fit = values["fit"]
    if "coefficients" not in fit:
        return f"Best rate at each context length; no fit: {fit['none']}."
    c2, c1, c0 = fit["coefficients"]
    explained = "" if fit["r2"] is None else f" (R² {fit['r2']:.2f})"
    return f"Best rate against context length n, and its fit {c2:.3g} n² {c1:+.3g} n {c0:+.3g}{explained}."


def _longest(entry: Mapping[str, Any]) -> dict[str, Series]:
    """Dense and pruned, per layer, at the longest context."""
    return {
        run: Series(*(numbers(found[name][-1]) for name in ("value", "low", "high"))) for run, found in entry.items()
    }


def _flow(flow: Mapping[str, Any]) -> dict[str, Series]:
    """Dense and pruned side by side for each kind of pair at the longest context; nothing (0) is left blank."""
    drawn = {}
    for name, text in _FLOWS.items():
        for run in ("dense", "pruned"):
            found = np.asarray(numbers(flow[run][name][-1]))
            drawn[text if run == "dense" else f"{text}, pruned"] = exact(np.where(found > 0, found, np.nan).tolist())
    return drawn


def _findings(subject: Subject, lengths: list[int]) -> list[str]:
    values, chosen = subject.values, subject.values[subject.values["judged_by"]]
    short, long = series(chosen[0]).value, series(chosen[-1]).value
    best = values["best_rates"]
    found = [
        f"The rate that does best is {percent(best[0])} beside {lengths[0]} tokens of context and {percent(best[-1])} "
        f"beside {lengths[-1]}; {_judge(values)} without pruning: {percent(short[0])} and {percent(long[0])}."
    ]
    variants = values["variants"]
    means = {name: float(np.nanmean(series(one["agreement"]).value)) for name, one in variants.items()}
    if "max" in means and "random" in means:
        verdict = "better than" if means["max"] > means["random"] else "no better than"
        found.append(
            f"Ranking by attention received is {verdict} dropping at random here: {percent(means['max'])} against "
            f"{percent(means['random'])} of the dense first tokens stay, mean over lengths, at the same rate."
        )
    dense, pruned = (series(values["visual_dependency"][run]).value for run in ("dense", "pruned"))
    found.append(
        f"The answering token puts {percent(dense[0])} of its attention on the image beside {lengths[0]} tokens of "
        f"context and {percent(dense[-1])} beside {lengths[-1]}; pruned, {percent(pruned[-1])}."
    )
    rises, wider = values["entropy_rises"], values.get("variance_rises")
    if rises is not None:
        more = "" if wider is None else f", and the variance of the weights in {percent(wider['value'])}"
        found.append(f"Entropy rises in {percent(rises['value'])} of the cases after pruning{more}.")
    if "middle layers" in means and "deep layers" in means:
        found.append(
            f"Pruned in as many layers elsewhere, {percent(means['middle layers'])} of the dense first tokens stay in "
            f"the middle and {percent(means['deep layers'])} in the deepest, against {percent(means['max'])} in the "
            "first."
        )
    return found


def _best_table(values: Mapping[str, Any], lengths: list[int]) -> Table:
    fit = RateFit.from_json(values["fit"]) if "coefficients" in values["fit"] else None
    rows = [
        [str(length), figure(best), "" if fit is None else figure(fit.rate(exactly))]
        for length, exactly, best in zip(lengths, values["lengths"], values["best_rates"], strict=True)
    ]
    return Table("Best rate by length", ("context, tokens", "best rate", "fitted"), rows)


def _variants(values: Mapping[str, Any], lengths: list[int]) -> Table:
    rows = [
        [_RANKINGS.get(name, name), *(f"{percent(agreement)} / {percent(right)}" if n else percent(agreement)
                 for agreement, right, n in zip(series(one["agreement"]).value,
                                                series(one["first_token_accuracy"]).value,
                                                [entry["n"] for entry in one["first_token_accuracy"]], strict=True))]
        for name, one in _by_name(values)
    ]  # fmt: skip
    return Table(
        "Other ways to rank and other depths at the default rate: same first token / right first token",
        ("ranked by, or pruned in", *(f"{length} tokens" for length in lengths)),
        rows,
    )


def _grid(values: Mapping[str, Any], lengths: list[int]) -> Table:
    rows = [
        [f"{length} tokens, {percent(rate)} dropped", shown(agreement, True), shown(right, True) if right["n"] else ""]
        for length, agreements, rights in zip(lengths, values["agreement"], values["first_token_accuracy"], strict=True)
        for rate, agreement, right in zip(values["rates"], agreements, rights, strict=True)
    ]
    return Table("Every length and rate", ("context", "same first token (95 %)", "right first token (95 %)"), rows)
