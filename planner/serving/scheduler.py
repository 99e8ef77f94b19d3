"""A thread that groups waiting requests into batches and runs one batch at a time.

The request that has waited longest is next. It takes with it those that wait for the same plan with inputs that can be
joined, up to the limits of a batch, whatever their lengths, answers and ways of drawing tokens. Requests that come
while a batch runs are grouped meanwhile: a lone request is never held back to wait for company. A batch is not joined
once it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from planner.serving.job import Job
from planner.serving.limits import Limits

_log = logging.getLogger(__name__)

#: Answers a batch: every job is told of its tokens and its end.
Run = Callable[[str, Sequence[Job]], None]


class Scheduler:
    """Runs jobs until `close`.

    Args:
        run: answers jobs of one model and one shape.
        limits: of a batch.
        count: called with the number of jobs in a batch before it runs.
    """

    def __init__(self, run: Run, limits: Limits, count: Callable[[int], None] = lambda _: None) -> None:
        self._run, self._limits, self._count = run, limits, count
        self._waiting: list[Job] = []
        self._running: tuple[Job, ...] = ()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs of the batch that runs whose answers have not ended."""
        return sum(not job.over for job in self._running)

    @property
    def alive(self) -> bool:
        """Whether jobs are run."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Answer a job; its `tell` hears of it."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more: it leaves the queue now, or its batch with the next token."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Run what waits, then end the thread. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._count(len(batch))
            self._answer(batch)
            self._running = ()

    def _next(self) -> tuple[Job, ...]:
        """The next batch; empty when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return ()
            first, *others = self._waiting
            batch, width = [first], first.width
            for job in others:
                wider = max(width, job.width)
                fits = len(batch) < self._limits.batch and wider * (len(batch) + 1) <= self._limits.batch_tokens
                if fits and (job.model, job.shape) == (first.model, first.shape):
                    batch.append(job)
                    width = wider
            self._waiting = [job for job in self._waiting if job not in batch]
            self._running = tuple(batch)
            return self._running

    def _answer(self, batch: Sequence[Job]) -> None:
        """Run a batch. Should it fail before its first tokens, its jobs are run one by one: one of them is to blame, or
        all of them were too much together."""
        try:
            self._run(batch[0].model, batch)
        except Exception as error:
            _log.warning("a batch of %d failed: %s: %s", len(batch), type(error).__name__, error)
            for job in batch:
                if job.over:
                    continue
                if len(batch) > 1 and not job.tokens:
                    self._answer([job])
                else:
                    job.fail(error)
