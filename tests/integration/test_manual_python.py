"""Every block of Python in the README and the manual runs, on the bundled model, with the names that a page assumes.

Two pages are run by tests of their own; a block on any other page is found and run here.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from planner import Diverse, ImageCache, VisiPruner, load_plan
from planner.plan import Decision, Plan
from planner.runtime import attach, fix
from planner.spec import ModelSpec
from tests import tiny

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Page -> the test that runs its blocks, in tests/integration.
ELSEWHERE = {"extending.md": "test_manual.py", "scaling.md": "test_scaling_page.py"}
MODEL = Path(str(resources.files("planner.profiles"))) / "reference" / "windowed"
PICTURE = ROOT / "profiles" / "reference" / "easy_vqa" / "images" / "evaluation" / "478.png"
PLAN = ROOT / "reports" / "reference" / "windowed" / "plan.json"


def pages() -> dict[str, list[str]]:
    """Blocks by page."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {path.name: BLOCK.findall(path.read_text(encoding="utf-8")) for path in files}
    return {name: blocks for name, blocks in found.items() if blocks}


def asked(answer: str = "") -> dict[str, torch.Tensor]:
    """Inputs of one question, with or without an answer behind it."""
    processor = AutoProcessor.from_pretrained(MODEL)
    content = [{"type": "image"}, {"type": "text", "text": "Is there a circle?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = Image.open(PICTURE).convert("RGB")
    return dict(processor(text=prompt + answer, images=picture, return_tensors="pt"))


def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(MODEL).eval()


def of_windowed(policy: Any) -> Plan:
    """A plan of a policy for the bundled model."""
    made = load_plan(PLAN)
    schedule = policy.schedule(ModelSpec.from_config(str(MODEL)))
    return Plan(model=made.model, decision=Decision(policy=str(policy), schedule=schedule)).sealed()


@contextlib.contextmanager
def a_deep_model() -> Iterator[dict[str, Any]]:
    """Of as many layers as the policy that the README shows has bounds for."""
    yield {"model": tiny.model("llava", layers=32), "inputs": {**tiny.inputs("llava"), "max_new_tokens": 2}}


@contextlib.contextmanager
def a_model() -> Iterator[dict[str, Any]]:
    yield {"model": model(), "inputs": {**asked(), "max_new_tokens": 4}}


@contextlib.contextmanager
def requests() -> Iterator[dict[str, Any]]:
    given = {**asked(), "max_new_tokens": 4}
    names = {"ImageCache": ImageCache, "ThreadPoolExecutor": ThreadPoolExecutor}
    yield {
        **names,
        "plan": of_windowed(VisiPruner(filter=2, keep=10, exit=7)),
        "model": model(),
        "requests": [given] * 2,
    }


@contextlib.contextmanager
def without_a_compiler() -> Iterator[dict[str, Any]]:
    """Graphs are traced and then run as they are: the default backend compiles for minutes, and wants a GPU."""
    compiled = torch.compile

    def traced(what: Any = None, *, fullgraph: bool = False, dynamic: bool | None = None, **_: Any) -> Any:
        return compiled(what, fullgraph=fullgraph, dynamic=dynamic, backend="eager")

    plan = of_windowed(VisiPruner(filter=2, keep=10, exit=7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", traced)
        yield {
            "plan": plan,
            "model": model(),
            "inputs": asked(),
            "token": torch.tensor([[5]]),
            "fix": fix,
            "torch": torch,
        }
    torch.compiler.reset()


@contextlib.contextmanager
def prompts_and_answers() -> Iterator[dict[str, Any]]:
    attached = model()
    with attach(attached, load_plan(PLAN).decision.schedule) as handle, torch.no_grad():
        prompts = [asked()["input_ids"][0]]
        yield {"handle": handle, "model": attached, "prompts": prompts, "prompts_and_answers": asked(" yes")}


@contextlib.contextmanager
def a_picture() -> Iterator[dict[str, Any]]:
    """What a client of vLLM has: a plan that any picture can be pruned by, a model, its processor and a picture."""
    of_windowed(Diverse(keep=36)).save("plan.json")
    picture = Image.open(PICTURE).convert("RGB")
    yield {"model": model(), "processor": AutoProcessor.from_pretrained(MODEL), "picture": picture}


#: Page -> what each of its blocks may assume; a page that is not here assumes nothing.
ASSUMED: dict[str, list[Callable[[], Any]]] = {
    "README.md": [a_model, a_deep_model],
    "deployment.md": [requests, without_a_compiler, prompts_and_answers],
    "vllm.md": [a_picture],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a plan, an earlier calibration, and what lies in a checkout."""
    for name in ("profiles", "reports"):
        os.symlink(ROOT / name, tmp_path / name)
    (tmp_path / "calibration").mkdir()
    for place in ("plan.json", "calibration/plan.json"):
        shutil.copy(PLAN, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", sorted(set(pages()) - set(ELSEWHERE) - {"serving.md"}))
def test_python_runs(page: str, folder: Path) -> None:
    blocks = pages()[page]
    assumed = ASSUMED.get(page, [contextlib.nullcontext] * len(blocks))
    assert len(assumed) == len(blocks), f"say in ASSUMED what the blocks of {page} assume"
    for block, assume in zip(blocks, assumed, strict=True):
        with assume() as names:
            exec(compile(block, page, "exec"), dict(names or {}))


def test_the_server_answers_the_client_of_its_page(folder: Path) -> None:
    from tests.serving import data_url, served

    (block,) = pages()["serving.md"]
    for written in ("http://127.0.0.1:8000", "data:image/png;base64,..."):
        assert block.count(written) == 1
    with served() as address:
        here = block.replace("http://127.0.0.1:8000", address)
        names: dict[str, Any] = {}
        exec(here.replace("data:image/png;base64,...", data_url(Image.open(PICTURE).convert("RGB"))), names)
        assert names["answer"].choices[0].message.content
        assert names["answer"].usage.visual_tokens["prompt"] == 144
        names["client"].close()


def test_blocks_that_run_elsewhere_are_run_there() -> None:
    for page, test in ELSEWHERE.items():
        assert page.removesuffix(".md") in (Path(__file__).parent / test).read_text(encoding="utf-8")
        assert pages()[page]
