"""Which jobs run together, and what happens when they fail or go."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from planner.serving.job import Growth, Job
from planner.serving.limits import Admission, Limits, Refused
from planner.serving.scheduler import Scheduler


def job(model: str = "a", shape: int = 0, width: int = 10) -> Job:
    return Job(
        model=model, inputs={}, shape=shape, prompt_tokens=width - 2, visual_tokens=0, limit=2, temperature=0, top_p=1,
        seed=None, ends=frozenset({0}), growth=Growth(lambda ids: "x" * len(ids)), watched=False,
    )  # fmt: skip


class Model:
    """Answers when it is let; notes the batches that it gets."""

    def __init__(self) -> None:
        self.batches: list[list[Job]] = []
        self.go = threading.Event()
        self.began = threading.Event()
        self.bad: set[int] = set()

    def __call__(self, name: str, jobs: Sequence[Job]) -> None:
        self.batches.append(list(jobs))
        self.began.set()
        assert self.go.wait(10)
        if self.bad & {id(one) for one in jobs}:
            raise RuntimeError("out of memory")
        for one in jobs:
            one.take(0)


def run(jobs: Sequence[Job], limits: Limits, model: Model | None = None) -> list[list[Job]]:
    """Batches of jobs that came while another one ran."""
    model = model or Model()
    scheduler = Scheduler(model, limits)
    scheduler.submit(job("first"))
    assert model.began.wait(10)
    for one in jobs:
        scheduler.submit(one)
    model.go.set()
    scheduler.close()
    assert not scheduler.alive and not scheduler.waiting and not scheduler.running
    return model.batches[1:]


def test_the_oldest_takes_those_with_it_that_fit() -> None:
    a, b, c, d, e = job("a"), job("b"), job("a", shape=1), job("b", width=40), job("a")
    assert run([a, b, c, d, e], Limits()) == [[a, e], [b, d], [c]]
    assert all(one.finish == "stop" for one in (a, b, c, d, e))


def test_a_batch_is_bounded_in_requests_and_in_padded_tokens() -> None:
    small = [job() for _ in range(5)]
    assert [len(batch) for batch in run(small, Limits(batch=2))] == [2, 2, 1]
    # Three of 10 are 30; with one of 20 two are 40 already.
    mixed = [job(), job(width=20), job(), job()]
    assert [len(batch) for batch in run(mixed, Limits(batch_tokens=30))] == [3, 1]
    alone = [job(width=1000), job()]
    assert [len(batch) for batch in run(alone, Limits(batch_tokens=30))] == [1, 1]


def test_a_batch_that_fails_is_run_one_by_one() -> None:
    model, (good, bad, other) = Model(), (job(), job(), job())
    model.bad = {id(bad)}
    assert run([good, bad, other], Limits(), model) == [[good, bad, other], [good], [bad], [other]]
    assert isinstance(bad.error, RuntimeError) and good.finish == other.finish == "stop"


def test_a_job_that_has_tokens_is_not_run_again() -> None:
    class Breaks(Model):
        def __call__(self, name: str, jobs: Sequence[Job]) -> None:
            super().__call__("", [])
            if len(self.batches) == 2:
                jobs[0].take(5)
                raise RuntimeError("broken")
            for one in jobs:
                one.take(0)

    begun, other = job(), job()
    run([begun, other], Limits(), Breaks())
    assert begun.error is not None and begun.tokens == [5] and other.finish == "stop"


def test_who_goes_leaves_the_queue_at_once() -> None:
    model = Model()
    scheduler = Scheduler(model, Limits())
    running, gone, stays = job("first"), job(), job()
    scheduler.submit(running)
    assert model.began.wait(10)
    for one in (gone, stays):
        scheduler.submit(one)
    scheduler.cancel(gone)
    scheduler.cancel(running)
    assert scheduler.waiting == 1 and scheduler.running == 0
    model.go.set()
    scheduler.close()
    assert model.batches == [[running], [stays]] and not running.tokens and not gone.tokens


def test_no_more_are_admitted_than_there_is_room_for() -> None:
    admission = Admission(Limits(requests=2, pending_bytes=100))
    with admission.enter(60) as first:
        with pytest.raises(Refused, match="busy") as full, admission.enter(41):
            pass
        assert full.value.status == 429
        with admission.enter(40):
            with pytest.raises(Refused) as full, admission.enter(0):
                pass
            assert full.value.status == 429
            with pytest.raises(Refused):
                first.hold(61)
        first.hold(100)
        with pytest.raises(Refused) as never:
            first.hold(101)
        assert never.value.status == 413
    assert admission.admitted == admission.bytes == 0
