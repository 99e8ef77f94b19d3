"""How fast a cost is, beside torch's counter, fvcore and a plain NumPy loop, all on the same 7B decoder, in one run.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_cost.py -o reports/benchmark-cost.md
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from planner.cost import cost, latency, sweep
from planner.cost.hardware import hardware
from planner.document import write_atomic
from planner.policies import VisiPruner, parse
from planner.spec import ModelSpec
from planner.workload import Workload

MODEL = "llava-1.5-7b"
SCHEDULES = 100_000
POLICY = "visipruner:filter=8,keep=10,exit=24,visual_attention=self"
#: As many stages as there are layers: the most that a schedule has.
MANY_STAGES = "fitprune"
SPEC = ModelSpec.from_config(MODEL)
PROMPT = Workload(visual_tokens=576)


def best(function: Callable[[], Any], calls: int = 1, repeats: int = 7) -> float:
    """Processor seconds of one call: the fastest of several rounds, since other load only ever adds."""
    rounds = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            function()
        rounds.append((time.process_time() - start) / calls)
    return min(rounds)


def parameters() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "filter": draw.integers(1, 16, SCHEDULES),
        "keep": draw.integers(1, 200, SCHEDULES),
        "exit": draw.integers(18, 33, SCHEDULES),
    }


def plain_numpy(given: dict[str, Any]) -> Any:
    """The obvious vectorised loop over layers: prefill FLOPs of every schedule, and nothing else."""
    d, m, words, visual = 4096, 11008, 74, 576
    total = np.zeros(SCHEDULES)
    for layer in range(32):
        present = np.where(layer <= given["filter"], visual, np.where(layer < given["exit"], given["keep"], 0))
        alone = layer < given["filter"]
        stream = np.where(alone, words, words + present)
        rows = words + present
        total += 2 * (stream * 4 * d * d + np.where(alone, present * 2 * d * d, 0))
        total += 4 * stream * stream * d + 6 * rows * d * m
    return total


def torch_decoder() -> tuple[Any, dict[str, Any]]:
    """The same decoder on the meta device, and 650 rows of input."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=32064, attn_implementation="sdpa")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
        # A finished mask and positions: making them asks for values, which meta tensors do not have.
        mask = torch.empty(1, 1, 650, 650, dtype=torch.bool)
        return model, {
            "inputs_embeds": torch.empty(1, 650, 4096),
            "attention_mask": mask,
            "position_ids": torch.empty(1, 650, dtype=torch.long),
        }


def counters() -> dict[str, float]:
    """Seconds of torch's FlopCounterMode and of fvcore, one schedule (dense) each."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from planner.runtime.fvcore_handles import analysis

    model, inputs = torch_decoder()

    def counted() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs, use_cache=False, logits_to_keep=1)
        return counter.get_total_flops()

    def traced() -> float:
        with torch.no_grad():
            return float(analysis(model, **inputs).total())

    dense = cost(SPEC, PROMPT, parse("dense").schedule(SPEC))
    decoder = dense.prefill_flops - dense.prefill["vision"] - dense.prefill["projector"]
    if counted() != decoder:
        raise SystemExit("torch's counter and ours disagree: the benchmark would compare different things")
    return {"torch FlopCounterMode on meta": best(counted, repeats=3), "fvcore on meta": best(traced, repeats=2)}


def memory_mb(given: dict[str, Any]) -> float:
    tracemalloc.start()
    sweep(SPEC, PROMPT, VisiPruner, hardware=hardware("h100-sxm"), **given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def cold_start() -> tuple[float, float]:
    """Seconds of the whole command from a cold shell, by the clock and of the processor: the fastest of several."""
    script = "from planner.cli import main; main()"
    command = [sys.executable, "-c", script, "report", MODEL]
    clock, processor = [], []
    for _ in range(9):
        used, start = os.times(), time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        clock.append(time.perf_counter() - start)
        now = os.times()
        processor.append(now.children_user + now.children_system - used.children_user - used.children_system)
    return min(clock), min(processor)


def table() -> str:
    given = parameters()
    device = hardware("h100-sxm")
    schedule = parse(POLICY).schedule(SPEC)
    one = cost(SPEC, PROMPT, schedule)
    many = parse(MANY_STAGES).schedule(SPEC, PROMPT)
    microseconds = {
        "ours, single: FLOPs by component, decode step, KV bytes": 1e6
        * best(lambda: cost(SPEC, PROMPT, schedule), 200),
        f"ours, single: the same of {len(many.stages)} stages, `{MANY_STAGES}`": 1e6
        * best(lambda: cost(SPEC, PROMPT, many), 100),
        "ours, single: the policy's spelling to its cost": 1e6
        * best(lambda: cost(SPEC, PROMPT, parse(POLICY).schedule(SPEC)), 100),
        "ours, single: roofline latency of a cost": 1e6 * best(lambda: latency(one, device), 100),
        f"ours, batch of {SCHEDULES:,}: FLOPs, decode step, KV bytes": 1e6
        / SCHEDULES
        * best(lambda: sweep(SPEC, PROMPT, VisiPruner, **given)),
        f"ours, batch of {SCHEDULES:,}: the same and roofline latency": 1e6
        / SCHEDULES
        * best(lambda: sweep(SPEC, PROMPT, VisiPruner, hardware=device, **given)),
        f"plain NumPy loop over layers, batch of {SCHEDULES:,}: prefill FLOPs only": 1e6
        / SCHEDULES
        * best(lambda: plain_numpy(given)),
    }
    microseconds |= {name: 1e6 * seconds for name, seconds in counters().items()}
    clock, processor = cold_start()
    lines = [f"| {name} | {value:,.3g} |" for name, value in microseconds.items()]
    return "\n".join(
        [
            "# Speed of the cost model",
            "",
            f"`{MODEL}`, {POLICY}, 650 tokens; the counters run the same decoder dense. One process, one thread,",
            "processor time, fastest of several rounds. Made by",
            "`OMP_NUM_THREADS=1 python tests/benchmarks/bench_cost.py -o reports/benchmark-cost.md`.",
            "",
            "| what | microseconds a schedule |",
            "|---|---:|",
            *lines,
            "",
            f"Memory allocated at the peak of a sweep of {SCHEDULES:,} with latency: {memory_mb(given):.0f} MB.",
            "",
            f"`plan report {MODEL}`, start to end of the process: {clock:.2f} s by the clock, {processor:.2f} s of",
            "the processor.",
            "",
            f"Measured on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"NumPy {np.__version__}; load average at the end {os.getloadavg()[0]:.1f}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    output = parser.parse_args().output
    warnings.simplefilter("ignore")
    text = table()
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomic(output, text)


if __name__ == "__main__":
    main()
