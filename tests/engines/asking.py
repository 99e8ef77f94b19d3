"""The same questions, asked of a server with the `openai` package and of transformers with the plan applied."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calibrate.inputs.encode import Encoder
from calibrate.inputs.identity import Model, identify
from calibrate.inputs.load import Loaded, load
from calibrate.inputs.samples import Sample, load_samples
from planner import Plan
from planner.plan import Decision, created_with
from planner.policies import parse
from tests.engines.server import NAME

NEW_TOKENS = 8
#: A part of a message.
Part = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: the answer.
        prompt_tokens: tokens of the prompt that the decoder got.
        seconds: until it was whole.
        first_s: until its first token; 0 where that is not known.
    """

    text: str
    prompt_tokens: int
    seconds: float = 0.0
    first_s: float = 0.0


class Reference:
    """A model in transformers.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.loaded: Loaded = load(str(folder))
        self.known: Model = identify(self.loaded.model, folder.name)
        self.encoder = Encoder(self.loaded.processor, self.known.visual_ids)

    def plan(self, policy: str, path: Path) -> Plan:
        """A plan for this model, written to a file too."""
        chosen = parse(policy)
        decision = Decision(policy=str(chosen), schedule=chosen.schedule(self.known.spec))
        made = Plan(model=self.known.identity, decision=decision, created_with=created_with()).sealed()
        made.save(path)
        return made

    def answers(self, samples: Sequence[Sample], plan: Plan | None) -> list[Answer]:
        """One at a time, under a plan or dense."""
        found = []
        with nullcontext() if plan is None else plan.apply(self.loaded.model) as handle, torch.inference_mode():
            for sample in samples:
                inputs = self.encoder([sample])
                ids = self.loaded.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
                length = inputs["input_ids"].shape[1]
                visual = int(torch.isin(inputs["input_ids"], self.encoder.visual_ids).sum())
                kept = visual if handle is None else sum(len(one[0]) for one in handle.kept)
                text = self.loaded.processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)
                found.append(Answer(text, length - visual + kept))
        return found


def distinct(path: Path, count: int) -> list[Sample]:
    """The first questions of a set that are about pictures of their own, so that no cache answers."""
    seen: dict[Any, Sample] = {}
    for sample in load_samples(path):
        seen.setdefault(sample.images[0], sample)
    return list(seen.values())[:count]


def asked(
    url: str, samples: Sequence[Sample], at_once: int = 1, stream: bool = False, pictures: Sequence[Part] = ()
) -> list[Answer]:
    """What a server answers, in order of the questions.

    Args:
        url: of its API.
        at_once: requests on their way at a time.
        stream: whether answers come word by word.
        pictures: what is sent in place of the samples' pictures, where anything is.
    """
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    with ThreadPoolExecutor(at_once) as pool:
        shown = pictures or [_picture(sample) for sample in samples]
        return list(pool.map(lambda sample, part: _ask(client, sample, part, stream), samples, shown))


def _picture(sample: Sample) -> Part:
    encoded = base64.b64encode(Path(sample.images[0]).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def _ask(client: Any, sample: Sample, picture: Part, stream: bool) -> Answer:
    content = [picture, {"type": "text", "text": sample.prompt}]
    request = {
        "model": NAME,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": NEW_TOKENS,
        # As transformers' processors do; by itself vLLM leaves it to the chat template.
        "extra_body": {"add_special_tokens": True},
    }
    start = time.perf_counter()
    if not stream:
        reply = client.chat.completions.create(**request)
        return Answer(reply.choices[0].message.content, reply.usage.prompt_tokens, time.perf_counter() - start)
    text, tokens, first = "", 0, 0.0
    for event in client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        piece = event.choices[0].delta.content if event.choices else None
        if piece:
            first = first or time.perf_counter() - start
            text += piece
        tokens = event.usage.prompt_tokens if event.usage else tokens
    return Answer(text, tokens, time.perf_counter() - start, first)
