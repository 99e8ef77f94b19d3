"""``python -m tests.reliability.kill 50``: kill -9 a calibration at random moments, resume it, compare what comes out.

Each trial measures the bundled model on a few samples, is killed somewhere between its start and the end of an
undisturbed run, sometimes once more while it resumes, and is resumed to its end. Its profile and its
tables must be, byte by byte, those of the undisturbed run, its state must hold the same rows, and its folder nothing
else.

A calibration runs in a fork of this process, which has the model loaded: most moments are moments of measuring.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from calibrate import pipeline
from calibrate.inputs.identity import identify
from calibrate.inputs.load import load
from calibrate.measuring import measure
from calibrate.measuring.state import SUFFIX, load_state
from planner.cli import cli

#: Seconds between two writings of the state, in place of 10: a killed run has something to lose and to keep.
STATE_INTERVAL_S = 0.02
ARGUMENTS = (
    "calibrate", "--profile-only", "--probes", "influence,sinks,masking", "--num-samples", "6",
    "--batch-size", "1", "--set", "masking.samples=1",
)  # fmt: skip


def start(out: Path, resume: bool) -> int:
    """A calibration in a process of its own; its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        errors = os.open(out.parent / f"{out.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        measure.STATE_INTERVAL_S = STATE_INTERVAL_S
        cli.main([*ARGUMENTS, "-o", str(out), *(["--resume"] if resume else [])], standalone_mode=False)
        status = 0
    finally:
        os._exit(status)


def ended(process: int, seconds: float) -> bool:
    """Whether a process ends well within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            if status:
                raise RuntimeError(f"a calibration ended with {os.waitstatus_to_exitcode(status)}")
            return True
        time.sleep(0.001)
    return False


def trial(out: Path, shares: list[float], whole_s: float) -> int:
    """Kill at each share of a run's time, then let it end; how often it was really killed."""
    killed = 0
    for number, share in enumerate(shares):
        process = start(out, resume=number > 0)
        if not ended(process, share * whole_s):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            killed += 1
    if not ended(start(out, resume=True), 300):
        raise RuntimeError("a resumed calibration does not end")
    return killed


def contents(out: Path) -> dict[str, Any]:
    """What a run leaves, but for the lock that a killed one could not take away."""
    return {path.name: content(path) for path in sorted(out.iterdir()) if path.suffix != ".lock"}


def content(path: Path) -> Any:
    if not path.name.endswith(SUFFIX):
        return path.read_bytes()
    header, found = load_state(path)  # safetensors writes its header in any order
    rows = {
        name: {column: array.tobytes() for column, array in table.arrays().items()} for name, table in found.items()
    }
    return header, rows


def main(trials: int, seed: int = 0) -> int:
    torch.set_num_threads(1)  # forks have no other threads
    loaded = load()
    identify(loaded.model, loaded.id)  # its fingerprint is at hand in every fork
    pipeline.load = lambda *_: loaded  # type: ignore[assignment]
    draw, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="plan-kill-"))
    whole_s = 300.0
    for _ in range(2):  # the second one is not the first to do anything
        shutil.rmtree(folder / "whole", ignore_errors=True)
        begun = time.monotonic()
        ended(start(folder / "whole", resume=False), 300)
        whole_s = min(whole_s, time.monotonic() - begun)
    expected = contents(folder / "whole")
    same, kills, kept, number = 0, 0, 0, 0
    while number < trials:
        out, shares = folder / str(number), [draw.random() for _ in range(draw.choice((1, 1, 2)))]
        killed = trial(out, shares, whole_s)
        if not killed:  # it was faster than the undisturbed run: no trial
            shutil.rmtree(out)
            (folder / f"{number}.log").unlink()
            whole_s *= 0.9
            continue
        number, kills = number + 1, kills + killed
        log = out.with_name(f"{out.name}.log").read_text()
        kept += log.count("resumed:") > log.count("resumed: nothing")
        found = contents(out)
        same += found == expected
        if found != expected:
            odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            print(f"trial {number}, killed at {shares} of the time: {', '.join(odd)} differ", file=sys.stderr)
        shutil.rmtree(out)
    shutil.rmtree(folder)
    print(
        f"{trials} trials of a calibration of {whole_s:.1f} s, {kills} kills; in {kept} trials rows were taken over; "
        f"{same} results are identical with the undisturbed one"
    )
    return int(same != trials)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
