"""Ten thousand requests in eight threads, and a thousand plans attached and detached: right answers, flat memory.

    OMP_NUM_THREADS=1 python -m tests.reliability.requests 10000 1000

Requests are those of `tests/integration/test_runtime_threads.py`: image prompts of several lengths, text alone, padded
batches, beams, several answers, steps by hand. A shared image cache is bounded to three of some ten image streams.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from planner.runtime import ImageCache, attach
from tests import tiny
from tests.integration.test_runtime_threads import THREADS, Request, requests
from tests.schedules import LAYERS, SCHEDULES


def resident_mib() -> float:
    """Memory that the process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS in /proc/self/status")


def serve(count: int) -> None:
    """Answer `count` requests in threads, and say what memory does meanwhile."""
    model = tiny.model("llava", dtype=torch.float64, layers=LAYERS)
    asked = requests("llava")
    with attach(model, SCHEDULES["visipruner"]) as handle:
        one = handle.encode_image(**tiny.inputs("llava")).bytes
    cache = ImageCache(max_bytes=3 * one)
    wrong: list[int] = []
    failed: list[str] = []
    numbers, lock = iter(range(count)), threading.Lock()

    def next_request() -> Iterator[int]:
        while True:
            with lock:
                number = next(numbers, None)
                if number is not None and number % (count // 10) == 0:
                    print(
                        f"{number:>6} requests, {resident_mib():.0f} MiB, {threading.active_count()} threads",
                        flush=True,
                    )
            if number is None:
                return
            yield number

    def work(expected: list[torch.Tensor], asked: list[Request]) -> None:
        for number in next_request():
            which = number % len(asked)
            try:
                if not torch.allclose(asked[which](model), expected[which], atol=1e-6):
                    wrong.append(number)
            except Exception as error:  # whatever it is, it is what this looks for
                failed.append(f"{number}: {error!r}")

    sys.setswitchinterval(1e-4)
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        expected = [ask(model) for ask in asked]
        begin = time.perf_counter()
        threads = [threading.Thread(target=work, args=(expected, asked)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    gc.collect()
    print(f"{count:>6} requests, {resident_mib():.0f} MiB, {time.perf_counter() - begin:.0f} s")
    print(f"wrong {len(wrong)}, failed {len(failed)}, image streams served {cache.hits}, held {len(cache)}")
    print(*failed[:5], sep="\n")


def attach_and_detach(count: int) -> None:
    """Attach a plan, answer a prompt, detach, `count` times; the model must answer as ever."""
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    with torch.inference_mode():
        dense = model(**inputs).logits
        for number in range(count):
            if number % (count // 5) == 0:
                print(f"{number:>6} attached and detached, {resident_mib():.0f} MiB", flush=True)
            with attach(model, SCHEDULES["visipruner"]):
                model(**inputs)
        assert torch.equal(model(**inputs).logits, dense), "the model answers otherwise after its plans"
    gc.collect()
    print(f"{count:>6} attached and detached, {resident_mib():.0f} MiB; the model answers as before")


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(int(sys.argv[1]))
    attach_and_detach(int(sys.argv[2]))
