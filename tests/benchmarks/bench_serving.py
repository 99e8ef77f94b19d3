"""`plan serve` under load, a plan beside the dense model in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_serving PLAN --out reports/serving.md

The server runs as its users start it. For every number of clients, plan and dense take turns round by round, each
asking the same questions by the real `openai` package, streamed. Processor time is the server's own; wall times are a
client's, on a machine that the clients share with the server. Every answer is compared with the one that the same
question gets from the same server alone.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import torch
import transformers
from openai import OpenAI

from calibrate.inputs.bundled import reference
from calibrate.inputs.jsonl import read_jsonl
from calibrate.inputs.sample import Sample
from planner.document import write_atomic
from planner.plan import load_plan

MODELS = ("plan", "dense")
PAGE = """# The server under load

`plan serve` with {model}, `{policy}` beside dense: {questions} questions in each of {rounds}
rounds, answers of at most {tokens} tokens, batches of at most {batch}. {machine} at the end;
{versions}. Made by

    OMP_NUM_THREADS={threads} python -m tests.benchmarks.bench_serving {arguments}

Medians over rounds; ratios to dense are formed round by round, plan and dense taking turns. CPU time is the server
process's alone and holds HTTP, image decoding and preprocessing, which a plan does not touch. Times are p50 / p95 of
all requests, as a client sees them. The last column counts answers in other words than the same question gets from the
same server when nobody else asks.

| clients | model | visual tokens | batch | requests/s | of dense | CPU ms a request | of dense | first token ms | \
answer ms | other answers |
|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

Of the questions alone, plan and dense answer {agree} of {questions} in the same words. Most memory of the server:
{memory:.0f} MB.
"""


class Answer(NamedTuple):
    """One answered question; times in seconds from the request."""

    text: str
    first: float
    whole: float
    kept: float


@dataclass(frozen=True)
class Round:
    """All questions asked once by some clients. `cpu` is the server's, in seconds, `batch` its mean batch."""

    answers: list[Answer]
    seconds: float
    cpu: float
    batch: float


@contextmanager
def serving(plan: Path, options: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The server's process and address."""
    command = ["-c", "from planner.cli import main; main()", "serve", f"plan={plan}", "--port", "0", *options]
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=log) as server,
    ):
        try:
            while not (found := re.search(r"running on (http://[\d.]+:\d+)", Path(log.name).read_text())):
                if server.poll() is not None:
                    raise SystemExit(Path(log.name).read_text())
                time.sleep(0.1)
            yield server.pid, found[1]
        finally:
            server.terminate()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """Most memory that a process has had."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def batches(address: str) -> tuple[float, float]:
    """Batches and requests in them so far."""
    text = httpx2.get(f"{address}/metrics").text
    count, total = (float(re.findall(rf"plan_batch_size_{name} (\S+)", text)[0]) for name in ("count", "sum"))
    return count, total


def asked(sample: Sample) -> list[dict[str, Any]]:
    """A sample as a client sends it."""
    pictures = [base64.b64encode(Path(str(path)).read_bytes()).decode() for path in sample.images]
    urls = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{one}"}} for one in pictures]
    return [{"role": "user", "content": [*urls, {"type": "text", "text": sample.prompt}]}]


def ask(client: OpenAI, model: str, messages: Any, tokens: int) -> Answer:
    """One question, streamed."""
    begin = time.perf_counter()
    first, pieces, kept = 0.0, [], 0.0
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=tokens, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        first = first or time.perf_counter() - begin
        pieces += [one.delta.content or "" for one in chunk.choices]
        if chunk.usage is not None:
            kept = chunk.usage.visual_tokens["kept"]  # type: ignore[attr-defined]
    return Answer("".join(pieces), first, time.perf_counter() - begin, kept)


def round_of(pid: int, address: str, model: str, questions: Sequence[Any], clients: int, tokens: int) -> Round:
    """Every question once, from so many clients."""
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client, ThreadPoolExecutor(clients) as pool:
        counted, cpu, begin = batches(address), cpu_seconds(pid), time.perf_counter()
        found = list(pool.map(lambda one: ask(client, model, one, tokens), questions))
        seconds, spent = time.perf_counter() - begin, cpu_seconds(pid) - cpu
        count, requests = (after - before for after, before in zip(batches(address), counted, strict=True))
    return Round(found, seconds, spent, requests / count)


def line(model: str, clients: int, rounds: Sequence[Round], dense: Sequence[Round], alone: Sequence[str]) -> str:
    """One row of the table; ratios are formed round by round."""
    answers = list(itertools.chain.from_iterable(one.answers for one in rounds))
    other = sum(answer.text != alone[n % len(alone)] for n, answer in enumerate(answers))

    def ratio(value: Callable[[Round], float]) -> str:
        found = statistics.median(value(a) / value(b) for a, b in zip(rounds, dense, strict=True))
        return f"{found:.2f}"

    def times(values: Sequence[float]) -> str:
        cuts = statistics.quantiles(values, n=20)
        return f"{1e3 * cuts[9]:.0f} / {1e3 * cuts[18]:.0f}"

    rate = statistics.median(len(one.answers) / one.seconds for one in rounds)
    cpu = statistics.median(1e3 * one.cpu / len(one.answers) for one in rounds)
    batch = statistics.mean(one.batch for one in rounds)
    kept = statistics.mean(answer.kept for answer in answers)
    return (
        f"| {clients} | {model} | {kept:.1f} | {batch:.1f} | {rate:.1f} | {ratio(lambda one: 1 / one.seconds)} "
        f"| {cpu:.1f} | {ratio(lambda one: one.cpu)} | {times([one.first for one in answers])} "
        f"| {times([one.whole for one in answers])} | {other} of {len(answers)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    parser.add_argument("--model", help="folder of the plan's model, where its name does not find it")
    parser.add_argument("--data", type=Path, help="JSONL of samples; without it the bundled evaluation samples")
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="--max-batch of the server")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    plan = load_plan(options.plan)
    bundled = reference(plan.model.id) if plan.model.id.startswith("reference/") else None
    data = options.data or (bundled.evaluation if bundled else parser.error("give --data"))
    questions = [asked(sample) for sample in read_jsonl(data)[: options.questions]]
    arguments = ["--max-batch", str(options.batch), *(["--model", options.model] if options.model else [])]
    lines, alone = [], {}
    with serving(options.plan, arguments) as (pid, address):
        for model in MODELS:  # also warms the server up
            alone[model] = [one.text for one in round_of(pid, address, model, questions, 1, options.tokens).answers]
        for clients in options.clients:
            found: dict[str, list[Round]] = {model: [] for model in MODELS}
            for _ in range(options.rounds):
                for model in MODELS:
                    found[model].append(round_of(pid, address, model, questions, clients, options.tokens))
            lines += [line(model, clients, found[model], found["dense"], alone[model]) for model in reversed(MODELS)]
        memory = peak_mb(pid)
    agree = sum(a == b for a, b in zip(alone["plan"], alone["dense"], strict=True))
    text = PAGE.format(
        model=plan.model.id,
        policy=plan.decision.policy,
        questions=len(questions),
        rounds=options.rounds,
        tokens=options.tokens,
        batch=options.batch,
        machine=f"{os.cpu_count()} {platform.machine()} cores shared with the clients, load {os.getloadavg()[1]:.1f}",
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        threads=os.environ.get("OMP_NUM_THREADS", ""),
        arguments=" ".join(sys.argv[1:]),
        rows="\n".join(lines),
        agree=agree,
        memory=memory,
    )
    if options.out is not None:
        write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
