"""`plan serve`, and four clients of it that ask the plan and the dense model at the same time.

python examples/server.py [PLAN]    (needs pip install '.[serve]' openai)
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "reports" / "reference" / "windowed" / "plan.json"
DATA = ROOT / "profiles" / "reference" / "easy_vqa"


@contextmanager
def serving(plan: str | Path) -> Iterator[str]:
    """A server on a free port, once it can answer; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program = Path(sys.executable).with_name("plan")
    server = subprocess.Popen([program, "serve", f"plan={plan}", "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        else:
            raise SystemExit("the server did not start; what it said is above")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()  # it answers what it has, then ends
        server.wait()


def main(plan: str | Path = PLAN) -> None:
    """Print each question, both answers, and the visual tokens that the plan kept, on average over the layers."""
    lines = (DATA / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    with serving(plan) as address, OpenAI(base_url=address, api_key="none") as client:

        def ask(line: str) -> str:
            asked = json.loads(line)
            picture = base64.b64encode((DATA / asked["image"]).read_bytes()).decode()
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
            messages = [{"role": "user", "content": [image, {"type": "text", "text": asked["prompt"]}]}]
            planned, dense = (
                client.chat.completions.create(model=name, messages=messages, max_tokens=8)
                for name in ("plan", "dense")
            )
            said = [one.choices[0].message.content for one in (planned, dense)]
            kept = planned.usage.visual_tokens
            tokens = f"{kept['kept']:g} of {kept['prompt']} visual tokens a layer"
            return f"{asked['prompt']} {said[0]} (dense: {said[1]}); {tokens}"

        with ThreadPoolExecutor(4) as threads:
            for answer in threads.map(ask, lines):
                print(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
