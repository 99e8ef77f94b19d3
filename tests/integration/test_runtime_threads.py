"""Any number of threads on one attached model: every answer is the one that the request gets alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer

from planner.errors import RuntimeStateError
from planner.runtime import ImageCache, attach
from tests import tiny
from tests.integration.test_runtime_invariants import Stop, assert_unchanged, snapshot
from tests.schedules import LAYERS, SCHEDULES, select

THREADS = 8
NAMES = (
    "visipruner",
    "prefix-read",
    "visipruner-merge",
    "probe",
    "fastv",
    "prellm",
    "context-fastv",
    "var-fastv",
    "threshold-relative",
)
#: One text tower with one axis of positions, one with three, one with sliding windows, one that adds vision features.
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "qwen3_vl")

Request = Callable[[Any], torch.Tensor]


@pytest.fixture(autouse=True)
def eager_switching() -> Iterator[None]:
    """Threads take turns in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def generating(inputs: dict[str, torch.Tensor], **options: Any) -> Request:
    def run(model: Any) -> torch.Tensor:
        # Any token but the placeholders, which an untrained model generates as well.
        found = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, suppress_tokens=list(range(118, 128)), **options
        )
        return found[:, inputs["input_ids"].shape[1] :]

    return run


def forward(inputs: dict[str, torch.Tensor]) -> Request:
    def run(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return model(**inputs, logits_to_keep=1).logits

    return run


def turns(inputs: dict[str, torch.Tensor]) -> Request:
    """A prompt, then steps that leave positions to the model."""

    def run(model: Any) -> torch.Tensor:
        found = []
        with torch.inference_mode():
            output = model(**inputs, use_cache=True, logits_to_keep=1)
            mask = inputs["attention_mask"]
            for step in range(3):
                found.append(output.logits)
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                token = torch.full((len(mask), 1), 20 + step)
                output = model(input_ids=token, attention_mask=mask, past_key_values=output.past_key_values)
        return torch.cat([*found, output.logits], dim=1)

    return run


def requests(family: str) -> list[Request]:
    """Prompts of equal and of other lengths, text only, padded batches, beams, several answers, steps by hand."""
    same = [generating(tiny.inputs(family, seed=seed)) for seed in range(3)]
    mixed = [
        generating(tiny.inputs(family, images=0)),
        generating(tiny.inputs(family, images=2, text=5)),
        generating(tiny.inputs(family, batch=2, left_pad=2, seed=4)),
        generating(tiny.inputs(family, seed=5), num_beams=2),
        generating(tiny.inputs(family, seed=6), num_beams=2, num_return_sequences=2),
        forward(tiny.inputs(family, batch=2, seed=7)),
        turns(tiny.inputs(family, seed=8)),
        turns(tiny.inputs(family, seed=9, text=5, batch=2, left_pad=1)),
    ]
    return same + mixed


def all_answered_as_alone(model: Any, asked: list[Request], rounds: int) -> None:
    expected = [ask(model) for ask in asked]
    wrong: list[str] = []

    def serve(number: int) -> None:
        for turn in range(rounds):
            for offset in range(len(asked)):
                which = (number + offset) % len(asked)
                found = asked[which](model)
                if found.shape != expected[which].shape or not torch.allclose(found, expected[which], atol=1e-6):
                    wrong.append(f"request {which} in turn {turn} of thread {number}")

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(serve, number) for number in range(THREADS)]:
            done.result()
    assert not wrong


@pytest.mark.parametrize(
    ("family", "name"), [("llava", name) for name in NAMES] + [(family, "visipruner") for family in FAMILIES[1:]]
)
def test_mixed_requests_are_answered_as_alone(family: str, name: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    generating(tiny.inputs(family))(model)  # transformers installs hooks of its own in the first run
    before = snapshot(model)
    with attach(model, SCHEDULES[name]):
        all_answered_as_alone(model, requests(family), rounds=1)
    assert_unchanged(model, before)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_threads_share_an_image_cache_that_is_too_small(family: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    with attach(model, SCHEDULES["visipruner"]) as handle:
        one = handle.encode_image(**tiny.inputs(family)).bytes
    cache = ImageCache(max_bytes=3 * one)
    with attach(model, SCHEDULES["visipruner"], image_cache=cache):
        all_answered_as_alone(model, requests(family), rounds=1)
    assert cache.hits and cache.bytes <= 3 * one


def test_threads_share_one_image_stream() -> None:
    model = tiny.model("llava", layers=LAYERS)
    prompts = [tiny.inputs("llava", text=text, seed=3) for text in (5, 7, 9)]
    for prompt in prompts[1:]:
        prompt["pixel_values"] = prompts[0]["pixel_values"]
    with attach(model, SCHEDULES["visipruner"]) as handle:
        stream = handle.encode_image(**prompts[0])
    with attach(model, SCHEDULES["visipruner"], image_stream=stream):
        all_answered_as_alone(model, [ask(prompt) for prompt in prompts for ask in (generating, forward)], rounds=2)


@pytest.mark.parametrize("family", ["mistral3", "qwen2_5_vl", "llava_next"])
def test_encoder_scores_are_each_threads_own(family: str) -> None:
    model = tiny.model(family, layers=LAYERS)
    asked = [forward(tiny.inputs(family, seed=seed)) for seed in range(6)]
    entry = select("encoder_attention", 0.5)
    with attach(model, SCHEDULES["dense"].model_copy(update={"entry": entry})):
        all_answered_as_alone(model, asked, rounds=2)


def test_each_thread_has_its_own_report() -> None:
    model = tiny.model("llava", layers=LAYERS)
    seen = {}

    def ask(images: int) -> None:
        forward(tiny.inputs("llava", images=images))(model)
        barrier.wait()
        seen[images] = handle.report.visual[0][0]

    barrier = threading.Barrier(2)
    with attach(model, SCHEDULES["fastv"]) as handle:
        threads = [threading.Thread(target=ask, args=(images,)) for images in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert handle.report is not None  # of a thread that ran no prompt: any's
    assert seen == {1: 16, 2: 32}


def test_streaming_beside_other_requests() -> None:
    class Words(TextIteratorStreamer):
        def __init__(self) -> None:
            super().__init__(tokenizer=None)
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            pass

    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    with attach(model, SCHEDULES["visipruner"]):
        alone = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist()

        def stream(_: int) -> list[int]:
            words = Words()
            model.generate(**inputs, max_new_tokens=4, do_sample=False, streamer=words)
            return words.tokens

        with ThreadPoolExecutor(THREADS) as pool:
            assert list(pool.map(stream, range(2 * THREADS))) == [alone] * (2 * THREADS)


@contextmanager
def failing_layer(model: Any, error: type[BaseException], thread_of: list[int]) -> Iterator[None]:
    """A layer that fails in one thread only."""

    def fail(*_: Any) -> None:
        if threading.get_ident() in thread_of:
            raise error("stopped")

    hook = model.model.language_model.layers[3].mlp.register_forward_pre_hook(fail)
    yield
    hook.remove()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt, Stop])
def test_a_thread_that_fails_leaves_the_others_and_the_model_alone(error: type[BaseException]) -> None:
    model = tiny.model("llava", layers=LAYERS)
    before = snapshot(model)
    ask, failed, failing = forward(tiny.inputs("llava")), [], []
    with attach(model, SCHEDULES["visipruner"]), failing_layer(model, error, failing):
        expected = ask(model)

        def fail() -> None:
            failing.append(threading.get_ident())
            for _ in range(20):
                try:
                    ask(model)
                except error:
                    failed.append(1)
            failing.clear()
            assert torch.equal(ask(model), expected)

        thread = threading.Thread(target=fail)
        thread.start()
        while thread.is_alive():
            assert torch.equal(ask(model), expected)
        thread.join()
        assert len(failed) == 20
    hooks = {key: value for key, value in before.items() if "layers.3.mlp" not in key}
    assert_unchanged(model, hooks | {key: snapshot(model)[key] for key in before if key not in hooks})


def test_detaching_waits_for_the_forwards_that_run() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    ask = forward(inputs)
    dense = ask(model)
    entered, release = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        entered.set()
        release.wait(10)

    handle = attach(model, SCHEDULES["fastv"])
    expected = ask(model)
    hook = model.model.language_model.layers[4].mlp.register_forward_pre_hook(pause)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(ask, model)
        entered.wait(10)
        detaching = pool.submit(handle.detach)
        time.sleep(0.05)
        assert not detaching.done()  # one runs
        coming = pool.submit(ask, model)
        time.sleep(0.05)
        assert not coming.done()  # held up until the plan is off
        release.set()
        detaching.result(10)
        assert torch.allclose(running.result(10), expected) and torch.allclose(coming.result(10), dense)
    hook.remove()
    assert not torch.allclose(expected, dense)
    handle.detach()


def test_detaching_from_inside_a_forward_is_refused() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    with attach(model, SCHEDULES["fastv"]) as handle:
        hook = model.model.language_model.layers[2].register_forward_hook(lambda *_: handle.detach())
        with pytest.raises(RuntimeStateError, match="inside a forward"):
            forward(inputs)(model)
        hook.remove()
        forward(inputs)(model)


def test_a_request_whose_plan_is_detached_is_refused_at_its_next_step() -> None:
    model, inputs = tiny.model("llava", layers=LAYERS), tiny.inputs("llava")
    handle = attach(model, SCHEDULES["fastv"])
    with torch.inference_mode():
        cache = model(**inputs, use_cache=True).past_key_values
        handle.detach()
        with pytest.raises(RuntimeStateError, match="detached"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_two_threads_attach_one_plan_only() -> None:
    model = tiny.model("llava", layers=LAYERS)
    handles: list[Any] = []
    refused: list[str] = []

    def try_to() -> None:
        try:
            handles.append(attach(model, SCHEDULES["visipruner"]))
        except RuntimeStateError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=try_to) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(handles) == 1 and len(refused) == THREADS - 1 and "attached to this model already" in refused[0]
    handles[0].detach()
