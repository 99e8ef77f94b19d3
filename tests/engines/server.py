"""A real `vllm serve` on this machine's CPU, for as long as a block runs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: What the model is called in requests.
NAME = "model"
_START_S, _STOP_S = 600, 30
_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        url: of its API.
        process: its first process.
        log: file of what it prints.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def peak_bytes(self) -> int:
        """The most memory that its processes have held, added up."""
        import psutil

        first = psutil.Process(self.process.pid)
        found = 0
        for process in (first, *first.children(recursive=True)):
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            found += int(peak[1]) * 1024 if peak else 0
        return found


@contextmanager
def serving(model: Path, plan: Path | None, log: Path, flags: Sequence[str] = ()) -> Iterator[Server]:
    """Serve a model, in float32.

    Args:
        model: its folder.
        plan: what the plugin is to carry; None leaves vLLM as it is.
        log: file for what it prints.
        flags: further ones.

    Raises:
        RuntimeError: it did not come up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "VLM_PLAN"} | _SETTINGS
    if plan is not None:
        environment["VLM_PLAN"] = str(plan.resolve())
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model.resolve()), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", NAME, "--dtype", "float32", "--enforce-eager"]
    with log.open("wb") as output:
        # In a folder of its own, so that nothing of this repository shadows an installed package.
        process = subprocess.Popen(
            [*command, *flags], env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield Server(f"http://127.0.0.1:{port}/v1", process, log)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(health, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError(f"vllm serve did not come up; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
