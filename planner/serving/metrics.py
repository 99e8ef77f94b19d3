"""What is counted for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from planner.runtime.imaging.image_cache import ImageCache
from planner.serving.job import Job
from planner.serving.limits import Admission
from planner.serving.scheduler import Scheduler

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to: Any = {"registry": self.registry}
        self._requests = Counter("plan_requests", "Requests by model and HTTP status.", ["model", "status"], **to)
        self._prompt = Counter("plan_prompt_tokens", "Tokens of prompts, as the dense model has them.", ["model"], **to)
        self._answer = Counter("plan_answer_tokens", "Tokens of answers.", ["model"], **to)
        seconds = "From a request's place in the queue to the end of its answer."
        self._seconds = Histogram("plan_request_seconds", seconds, ["model"], buckets=_SECONDS, **to)
        self._batch = Histogram("plan_batch_size", "Requests in a batch.", buckets=_SIZES, **to)
        visual = "Visual tokens of prompts, in the mean over layers: kept (they ran) or dropped."
        self._visual = Counter("plan_visual_tokens", visual, ["model", "fate"], **to)

    def watch(self, scheduler: Scheduler, admission: Admission, cache: ImageCache | None) -> None:
        """Show what others count."""
        shown = {
            "plan_queue": ("Requests that wait for a batch.", lambda: scheduler.waiting),
            "plan_running": ("Requests that are being answered.", lambda: scheduler.running),
            "plan_admitted": ("Requests admitted, from their first byte on.", lambda: admission.admitted),
            "plan_pending_bytes": ("Bytes that they hold.", lambda: admission.bytes),
        }
        for name, (help_text, value) in shown.items():
            Gauge(name, help_text, registry=self.registry).set_function(value)
        if cache is not None:
            self.registry.register(_Cache(cache))

    def batch(self, size: int) -> None:
        """A batch is about to run."""
        self._batch.observe(size)

    def replied(self, model: str, status: int) -> None:
        """A request has ended."""
        self._requests.labels(model, str(status)).inc()

    def answered(self, job: Job, seconds: float) -> None:
        """An answer is complete."""
        self._prompt.labels(job.model).inc(job.prompt_tokens)
        self._answer.labels(job.model).inc(len(job.tokens))
        self._visual.labels(job.model, "kept").inc(job.kept)
        self._visual.labels(job.model, "dropped").inc(job.visual_tokens - job.kept)
        self._seconds.labels(job.model).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)


class _Cache(Collector):
    """An image cache."""

    def __init__(self, cache: ImageCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("plan_image_cache_hits", "Batches whose images were all cached.", self._cache.hits)
        yield CounterMetricFamily("plan_image_cache_misses", "Batches with an image that was not.", self._cache.misses)
        yield GaugeMetricFamily("plan_image_cache_bytes", "Bytes that are cached.", self._cache.bytes)
