"""Sinks of the vision encoder beside the decoder's."""

from __future__ import annotations

from planner.report.section import Section, Subject, Table, figure, percent, shown

_CONDITIONS = {"long": "encoder sinks hidden", "random": "as many random visual tokens hidden"}


def section(subject: Subject) -> Section:
    """How many there are, whether the decoder makes sinks of them, and whether they matter."""
    values, settings = subject.values, subject.probe.settings
    measured = values["long"]["agreement"]["value"] is not None
    rows = [
        [text, shown(values[name]["agreement"], True), shown(values[name]["kl"])] for name, text in _CONDITIONS.items()
    ]
    tables = [
        Table("Hidden from the text", ("condition", "same first token (95 %)", "KL divergence, nats (95 %)"), rows)
    ]
    return Section(
        "encoder_sinks",
        "Sinks of the vision encoder",
        f"Some patches leave the vision encoder with features at least {figure(settings['norm_multiple'])} times as "
        "long as the median one: there the encoder keeps what it has gathered about the picture. They are not the "
        "decoder's sinks, which arise in its own layers.",
        _findings(subject, measured),
        (),
        tables if measured else [],
    )


def _findings(subject: Subject, measured: bool) -> list[str]:
    values, n = subject.values, subject.probe.n
    if not measured:
        return [
            f"No visual feature is that long in {n} samples: the longest is {shown(values['longest'])} times the "
            "median one, so this encoder has no such sinks."
        ]
    long, decoder, both = (values[name]["value"] for name in ("encoder_sinks", "decoder_sinks", "both"))
    kept, other = (values[name]["agreement"]["value"] for name in _CONDITIONS)
    far, near = (values[name]["kl"]["value"] for name in _CONDITIONS)
    verdict = "they carry meaning" if far > near else "they carry no more than other tokens"
    return [
        f"{figure(long)} visual tokens are encoder sinks on average ({percent(values['share_of_tokens']['value'])}), "
        f"{figure(decoder)} are sinks of the decoder, and {figure(both) if both else 'none'} both.",
        f"With the encoder sinks hidden {percent(kept)} of the first answer tokens stay, with as many random visual "
        f"tokens hidden {percent(other)} (divergence {figure(far, 2)} against {figure(near, 2)} nats): {verdict}.",
        f"At the input of the third layer encoder sinks stand out in dimensions {_listed(values['encoder_dims'])}, the "
        f"decoder's visual sinks in {_listed(values['decoder_dims'])}.",
        f"{values['samples_without']} of {n} samples have no encoder sink.",
    ]


def _listed(dims: list[int]) -> str:
    return ", ".join(map(str, dims)) or "none"
