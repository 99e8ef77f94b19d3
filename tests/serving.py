"""A server inside the test's process, what it is asked, and what the model says to the same alone."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2
import torch
import uvicorn
from openai import OpenAI
from PIL import Image

from calibrate.inputs.bundled import reference_path
from calibrate.inputs.conversation import Part, Turn
from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import identify
from calibrate.inputs.load import Loaded, load
from calibrate.inputs.samples import Sample
from planner.cli.serve import assemble
from planner.plan import Decision, Plan, load_plan
from planner.policies import parse
from planner.profile import Profile
from planner.serving.limits import Limits
from planner.serving.pictures import Sources
from planner.spec import ModelSpec
from tests.imports import ROOT

SAMPLES = reference_path("easy_vqa")
#: Plans beside the calibrated one: selections inside the decoder, by threshold and at random, and one that caches.
POLICIES = {
    "fastv": "fastv:k=2,ratio=0.5",
    "random": "random:k=2,ratio=0.5",
    "cached": "visipruner:filter=2,keep=40,exit=7",
    "composed": "prellm:keep=0.5+fastv:k=3,ratio=0.5",
}
LIMITS = Limits(context=512, answer_tokens=64, seconds=60)


def plans(name: str) -> dict[str, Plan]:
    """The calibrated plan of a bundled model, and others for it."""
    calibrated = load_plan(ROOT / "reports" / "reference" / name / "plan.json")
    profile = Profile.load(reference_path(name) / "profile.json")
    spec = ModelSpec.from_config(profile.model.config)
    found = {"plan": calibrated}
    for short, policy in POLICIES.items():
        decision = Decision(policy=policy, schedule=parse(policy).schedule(spec), seed=7)
        found[short] = Plan(model=profile.model, decision=decision, processor=profile.processor).sealed()
    return found


_clients: dict[str, list[OpenAI]] = {}


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An application on a free port; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield address
    finally:
        for one in _clients.pop(address, []):
            one.close()
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def served(name: str = "windowed", limits: Limits = LIMITS, **options: Any) -> Iterator[str]:
    """A bundled model under `plans`."""
    app = assemble(plans(name), load(f"reference/{name}"), limits, options.pop("sources", Sources()), **options)
    with running(app) as address:
        yield address


def client(address: str, **options: Any) -> OpenAI:
    """The real client, without second tries; it is closed when its server ends."""
    one = OpenAI(base_url=f"{address}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **options})
    _clients.setdefault(address, []).append(one)
    return one


def data_url(picture: Image.Image, form: str = "PNG") -> str:
    """A picture as a data URL."""
    stream = io.BytesIO()
    picture.save(stream, format=form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def metric(address: str, name: str) -> float:
    lines = httpx2.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def bomb(width: int, height: int) -> str:
    """A PNG that says it has so many pixels, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def shown(*urls: str, text: str = "what is it?") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@dataclass(frozen=True)
class Asked:
    """A conversation: (role, words and pictures) by turn, and the longest answer."""

    turns: tuple[tuple[str, tuple[str | Image.Image, ...]], ...]
    tokens: int = 8

    @classmethod
    def of(cls, *parts: str | Image.Image, tokens: int = 8) -> Asked:
        """One question."""
        return cls((("user", parts),), tokens)

    def messages(self) -> list[dict[str, Any]]:
        """As OpenAI's clients send it."""
        return [{"role": role, "content": [_sent(part) for part in parts]} for role, parts in self.turns]

    def sample(self) -> Sample:
        """As calibration reads it."""
        turns = tuple(
            Turn(role, tuple(Part("text", p) if isinstance(p, str) else Part("image", "-") for p in parts))
            for role, parts in self.turns
        )
        shown = tuple(p for _, parts in self.turns for p in parts if not isinstance(p, str))
        return Sample(shown, [p for p in self.turns[-1][1] if isinstance(p, str)][-1], turns=turns)


def _sent(part: str | Image.Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": data_url(part)}}


def questions(count: int, start: int = 0) -> list[tuple[Image.Image, str]]:
    """Pictures and questions that no plan was decided on, pictures of all shapes and modes."""
    found = []
    sizes = [(64, 64), (37, 90), (300, 180), (61, 60), (128, 128)]
    lines = (SAMPLES / "test.jsonl").read_text().splitlines()[start : start + count]
    for number, line in enumerate(map(json.loads, lines)):
        with Image.open(SAMPLES / line["image"]) as opened:
            picture = opened.resize(sizes[number % len(sizes)])
        found.append((picture.convert("RGBA" if number % 3 == 2 else "RGB"), line["prompt"]))
    return found


def mixed(count: int) -> list[Asked]:
    """Single questions, text alone, two pictures, second and third turns, answers of many lengths."""
    found: list[Asked] = []
    for number, (picture, prompt) in enumerate(questions(count)):
        other, question = questions(1, start=number + 1)[0]
        kinds = [
            Asked.of(picture, prompt),
            Asked.of(picture, prompt, tokens=1 + number % 5),
            Asked.of(prompt),
            Asked.of("first ", picture, " second ", other, prompt),
            Asked((("user", (picture, prompt)), ("assistant", ("yes",)), ("user", (question,)))),
            Asked((("user", (picture, prompt)), ("assistant", ("no",)), ("user", (other, question)))),
        ]
        found.append(kinds[number % len(kinds)])
    return found


@cache
def reference(name: str) -> Loaded:
    """A bundled model that no server touches."""
    return load(f"reference/{name}")


def alone(name: str, plan: Plan | None, asked: Sequence[Asked]) -> list[str]:
    """What the model says to each conversation by itself, through `plan.attach` and `generate`."""
    loaded = reference(name)
    encoder = Encoder(loaded.processor, identify(loaded.model, loaded.id).visual_ids)
    handle = None if plan is None else plan.attach(loaded.model)
    found = []
    try:
        for one in asked:
            sample = one.sample()
            inputs = encoder([sample]) if sample.images else _text(encoder, sample)
            with torch.inference_mode():
                ids = loaded.model.generate(**inputs, max_new_tokens=one.tokens, do_sample=False)
            found += encoder.decode(ids[:, inputs["input_ids"].shape[1] :])
    finally:
        if handle is not None:
            handle.detach()
    return found


def _text(encoder: Encoder, sample: Sample) -> dict[str, torch.Tensor]:
    text = encoder.processor.apply_chat_template(sample.conversation(), add_generation_prompt=True)
    ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
