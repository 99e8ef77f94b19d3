"""From the command line to the end: aborts, memory, SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import APIConnectionError, APIStatusError, APITimeoutError

from planner.serving.job import Job
from tests.imports import ROOT
from tests.serving import LIMITS, Asked, alone, bomb, client, data_url, metric, plans, questions, served, shown

PLAN = ROOT / "reports" / "reference" / "windowed" / "plan.json"
LONG: Any = {"model": "plan", "messages": Asked.of("what is it?").messages(), "max_tokens": 60}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def plan(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from planner.cli import main; main()", *arguments]


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`plan serve` as its users start it, and its address."""
    with tempfile.NamedTemporaryFile() as log:
        command = plan("serve", str(PLAN), "--port", "0", *arguments)
        with subprocess.Popen(command, stderr=log, env={**os.environ, **environment}) as done:
            try:
                while not (found := re.search(r"running on (http://[\d.]+:\d+)", Path(log.name).read_text())):
                    assert done.poll() is None, Path(log.name).read_text()
                    time.sleep(0.1)
                yield done, found[1]
            finally:
                done.kill()


@pytest.mark.parametrize("stream", [True, False])
def test_aborts_free_their_place_and_end_the_work(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    taken: list[int] = []
    take = Job.take

    def slowly(job: Job, token: int) -> bool:
        taken.append(token)
        time.sleep(0.02)
        return take(job, token)

    with served() as address:
        expected = client(address).chat.completions.create(**LONG).choices[0].message.content
        monkeypatch.setattr(Job, "take", slowly)
        for _ in range(2):
            if stream:
                chunks = client(address).chat.completions.create(**LONG, stream=True)
                for _ in range(3):
                    next(chunks)
                chunks.close()
            else:
                with pytest.raises(APITimeoutError):
                    client(address, timeout=0.4).chat.completions.create(**LONG)
            until(lambda: metric(address, "plan_admitted") == metric(address, "plan_running") == 0)
        time.sleep(0.1)
        assert 0 < len(taken) < 100, "of 120 that were asked for"
        assert metric(address, 'plan_requests_total{model="plan",status="499"}') == 2
        monkeypatch.undo()
        assert client(address).chat.completions.create(**LONG).choices[0].message.content == expected


def test_sigterm_lets_every_answer_come_to_its_end() -> None:
    (wanted,) = alone("windowed", plans("windowed")["plan"], [Asked.of("what is it?", tokens=60)])
    with process() as (server, address), ThreadPoolExecutor(6) as pool:
        streams = [client(address).chat.completions.create(**LONG, stream=True) for _ in range(6)]
        begun = [next(stream) for stream in streams]
        server.send_signal(signal.SIGTERM)
        rests = list(pool.map(list, streams))
        assert server.wait(60) == 0
        for first, rest in zip(begun, rests, strict=True):
            chunks = [first, *rest]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
            assert chunks[-1].choices[0].finish_reason == "length"
        with pytest.raises(APIConnectionError):
            client(address).models.list()


def test_memory_is_bounded_whatever_comes() -> None:
    """Hundreds of large and hostile requests at once, most of them turned away, beside some that are answered."""
    limit = 48
    bounds = {"requests": 16, "pending-mb": limit, "body-mb": 12, "pixels": 4_000_000}
    arguments = [text for name, value in bounds.items() for text in (f"--max-{name}", str(value))]
    large = data_url(questions(1)[0][0].resize((1600, 1600)), "BMP")  # 10 MB as base64
    kinds: list[Any] = [
        shown(large),
        shown(bomb(60_000, 60_000)),
        [{"role": "user", "content": "red " * 2_500_000}],
        shown(*[data_url(questions(1)[0][0])] * 2, text="x" * 5_000_000),
        shown(data_url(questions(1)[0][0])),
    ]

    def ask(number: int) -> int:
        try:
            client(address).chat.completions.create(model="plan", messages=kinds[number % len(kinds)], max_tokens=4)
        except APIStatusError as error:
            return error.status_code
        return 200

    with process(*arguments) as (server, address):
        assert ask(0) == ask(4) == 200
        before = resident_mb(server.pid)
        with ThreadPoolExecutor(24) as pool:
            statuses = list(pool.map(ask, range(60)))
        assert resident_mb(server.pid, "VmHWM") - before < 4 * limit
        assert set(statuses) == {200, 400, 429}
        until(lambda: metric(address, "plan_admitted") == metric(address, "plan_pending_bytes") == 0)
        assert ask(4) == 200


def resident_mb(pid: int, which: str = "VmRSS") -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(rf"{which}:\s+(\d+) kB", status)[0]) / 1024


def test_the_key_may_come_from_the_environment() -> None:
    with process("--host", "127.0.0.1", PLAN_SERVE_API_KEY="sesame") as (_, address):
        assert client(address, api_key="sesame").models.list().data
        with pytest.raises(APIStatusError):
            client(address).models.list()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([str(PLAN), str(PLAN)], 2, "the name 'plan' is taken"),
        ([f"dense={PLAN}"], 2, "the name 'dense' is taken"),
        ([str(PLAN), f"other={ROOT / 'reports' / 'reference' / 'plain' / 'plan.json'}"], 1, "other weights"),
        (["missing.json"], 1, "missing.json"),
    ],
)
def test_what_cannot_be_served(arguments: list[str], status: int, said: str) -> None:
    done = subprocess.run(plan("serve", *arguments), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False)
    assert said in done.stderr


def test_a_request_that_takes_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Job.take
    monkeypatch.setattr(Job, "take", lambda job, token: time.sleep(0.05) or take(job, token))
    with served(limits=replace(LIMITS, seconds=1.0)) as address:
        with pytest.raises(APIStatusError) as late:
            client(address).chat.completions.create(**LONG)
        assert late.value.status_code == 504
        chunks: list[Any] = []
        with pytest.raises(Exception, match="took more than 1 seconds"):
            chunks += client(address).chat.completions.create(**LONG, stream=True)
