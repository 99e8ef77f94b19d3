"""What the fingerprint of a model's weights costs: ``python -m tests.benchmarks.bench_fingerprint [GB]``.

A stack of square layers as a 7B model has them, in each number format: seconds a gigabyte for the first look, for one
when nothing changed, and with the digest over all bytes; beside a plain pass that only reads (`Tensor.sum`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from planner.runtime.model.weights import weights_of

WIDTH = 4096


def stack(dtype: torch.dtype, gigabytes: float) -> nn.Sequential:
    count = round(gigabytes * 1e9 / (WIDTH * WIDTH * dtype.itemsize))
    layers = [nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype, device="meta") for _ in range(count)]
    built = nn.Sequential(*layers).to_empty(device="cpu")
    for parameter in built.parameters():
        parameter.data.normal_()
    return built


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main(gigabytes: float = 1.0) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print("| format | GB | first look, s/GB | unchanged, ms | with --full-digest, s/GB | plain sum, s/GB |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        built = stack(dtype, gigabytes)
        size = sum(parameter.nbytes for parameter in built.parameters()) / 1e9
        read = seconds(lambda built=built: [parameter.sum() for parameter in built.parameters()]) / size
        first = seconds(lambda built=built: weights_of(built)) / size
        again = 1000 * seconds(lambda built=built: weights_of(built))
        full = seconds(lambda built=built: weights_of(built, full=True)) / size
        cells = (f"{size:.2f}", f"{first:.2f}", f"{again:.2f}", f"{full:.2f}", f"{read:.2f}")
        print(f"| {str(dtype).removeprefix('torch.')} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
