"""The files that are read, each with a whole one to start from, mutants of it, and what a reader makes of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from calibrate.inputs.samples import load_samples
from calibrate.measuring.state import load_state, save_state
from calibrate.probes.base import build_probes
from planner.cost import cost, latency
from planner.cost.hardware import hardware, shipped_row
from planner.document import canonical, digest
from planner.errors import PlannerError
from planner.plan import Plan, load_plan
from planner.profile import Profile
from planner.report.plan_view import describe
from planner.report.profile_view import describe_profile
from planner.runtime.imaging.image_stream import ImageStream, Key
from planner.schedule import dense
from planner.spec import ModelSpec, shipped_model
from planner.weights import TensorFacts, Weights
from planner.workload import Workload
from tests.fuzz.mutants import damaged, rewritten
from tests.unit.report_documents import profile as report_profile
from tests.unit.report_documents import written
from tests.unit.test_evidence import first_schema
from tests.unit.test_plan import make_plan

REQUEST = Workload(visual_tokens=100)


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        content: the whole file.
        mutants: of it.
        read: what a user's command does with the file; raises PlannerError to refuse it.
        whole: what `read` gives for the whole file, where a digest protects it: mutants that are read must equal it.
    """

    name: str
    path: Path
    content: bytes
    mutants: st.SearchStrategy[bytes]
    read: Callable[[Path], Any]
    whole: Any = None

    def outcome(self, content: bytes) -> str:
        """``refused``, ``read`` or ``believed``; whatever else is raised is a fault."""
        self.path.write_bytes(content)
        try:
            found = self.read(self.path)
        except PlannerError as error:
            assert error.cause, "a refusal without a cause"
            str(error).encode()  # can be printed
            return "refused"
        return "read" if self.whole is None or found == self.whole else "believed"


def weights() -> Weights:
    return Weights.of("float32", {f"w{i} [2]": TensorFacts(0.5, -1.0, 1.0, (0.1, 0.2)) for i in range(3)})


def plan() -> Plan:
    made = make_plan()
    source = small_profile().model
    model = made.model.model_copy(update={"config": source.config, "weights": weights()})
    return made.model_copy(
        update={"model": model, "processor": {"class": "X", "image_processor": {"size": 3}}}
    ).sealed()


@cache
def small_profile() -> Profile:
    found = report_profile({name: written()[name] for name in ("flip", "sink_masking")})
    return found.model_copy(update={"model": found.model.model_copy(update={"weights": weights()})}).sealed()


def read_plan(path: Path) -> Any:
    found = load_plan(path)
    describe(found)
    return found.content()


def read_profile(path: Path) -> Any:
    found = Profile.load(path)
    describe_profile(found)
    return found.content()


def read_config(path: Path) -> None:
    spec = ModelSpec.from_config(path)
    cost(spec, REQUEST, dense(spec.layers))


def read_hardware(path: Path) -> None:
    row = hardware(path)
    _ = row.doubts
    spec = ModelSpec.from_config("llava-1.5-7b")
    latency(cost(spec, REQUEST, dense(spec.layers), "causal"), row)


def read_samples(path: Path) -> None:
    for sample in load_samples(path):
        sample.pictures()
        sample.clips()
        sample.conversation()


def read_state(path: Path) -> Any:
    header, found = load_state(path)
    arrays = {
        f"{probe}/{name}": array.tolist() for probe, table in found.items() for name, array in table.arrays().items()
    }
    return [header, arrays]


def read_stream(path: Path) -> Any:
    return [(list(key), {layer: state.tolist() for layer, state in states.items()})
            for key, states in ImageStream.load(path).images.items()]  # fmt: skip


def sealed(kind: str) -> Callable[[Any], Any]:
    def seal(body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        rest = {name: value for name, value in body.items() if name != f"{kind}_sha256"}
        try:
            return {**rest, f"{kind}_sha256": digest(rest)}
        except (ValueError, TypeError):  # half a character: any digest is as good
            return {**rest, f"{kind}_sha256": "0" * 64}

    return seal


def targets(folder: Path | None = None) -> list[Target]:
    """Every kind of file, twice where a digest can be made to fit."""
    folder = folder or Path(tempfile.mkdtemp(prefix="plan-fuzz-"))
    found = []
    for name, body, read in (
        ("plan", plan().content(), read_plan),
        ("profile", small_profile().content(), read_profile),
    ):
        text, path = canonical(body).encode(), folder / f"{name}.json"
        found.append(Target(name, path, text, damaged(text), read, body))
        found.append(Target(f"{name}, digest made to fit", path, text, rewritten(body, sealed(name)), read))
    old = first_schema()
    name, path, text = "plan of the first schema, digest made to fit", folder / "old.json", canonical(old).encode()
    found.append(Target(name, path, text, rewritten(old, sealed("plan")), read_plan))
    for model in ("llava-1.5-7b", "qwen2-vl-7b"):
        found.append(
            text_target(f"config of {model}", folder / f"{model}.json", shipped_model(model)["config"], read_config)
        )
    row = json.loads(shipped_row("h100-sxm").model_dump_json())
    found.append(text_target("hardware row", folder / "row.json", row, read_hardware))
    Image.new("RGB", (4, 4)).save(folder / "x.png")
    line = {"image": "x.png", "prompt": "what?", "answer": ["a", "b"], "type": "kind"}
    more = b"\n" + json.dumps({"image": ["x.png"], "prompt": "half"}).encode()
    found.append(text_target("JSONL samples", folder / "x.jsonl", line, read_samples, more))
    question = [
        {"type": "image", "image": "x.png"},
        {"type": "text", "text": "what?"},
        {"type": "video", "path": "x.png"},
    ]
    talk = {
        "messages": [{"role": "system", "content": "short"}, {"role": "user", "content": question}],
        "answers": ["a"],
    }
    found.append(text_target("JSONL conversations", folder / "talk.jsonl", talk, read_samples))
    for name, path, read in (
        ("state", state_file(folder), read_state),
        ("image stream", stream_file(folder), read_stream),
    ):
        content = path.read_bytes()
        found.append(Target(name, path, content, damaged(content), read, read(path)))
    return found


def text_target(name: str, path: Path, body: Any, read: Callable[[Path], Any], more: bytes = b"") -> Target:
    """JSON that no digest protects: bytes are damaged, values exchanged."""
    text = json.dumps(body).encode() + more
    mutants = st.one_of(damaged(text), rewritten(body).map(lambda one: one + more))
    return Target(name, path, text, mutants, read)


def state_file(folder: Path) -> Path:
    probes = build_probes(("influence", "flip"), None)
    for sample in range(3):
        probes["flip"].table.add(sample, value=np.arange(4.0) + sample)
    header = {"model": small_profile().model.model_dump(mode="json"), "samples": {}, "probes": ["flip"], "settings": {}}
    path = folder / "x.state.safetensors"
    save_state(path, header, probes)
    return path


def stream_file(folder: Path) -> Path:
    states = {3: torch.arange(12.0).view(4, 3), 5: torch.ones(4, 3)}
    path = folder / "x.safetensors"
    ImageStream({Key("m" * 64, "0-2 (states 3)", "i" * 64): states}).save(path)
    return path
