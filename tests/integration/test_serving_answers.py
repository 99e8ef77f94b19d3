"""Every answer of the server is the one that the request gets alone, whoever else asks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.serving import Asked, alone, client, metric, mixed, plans, questions, served

CLIENTS = 32
Server = tuple[str, str]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served("windowed", cache_bytes=64 << 20) as address:
        yield "windowed", address


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    with served("plain", cache_bytes=64 << 20) as address:
        yield "plain", address


def ask(address: str, model: str, asked: Asked, stream: bool, **options: Any) -> str:
    api = client(address)
    common: Any = {"model": model, "messages": asked.messages(), "max_tokens": asked.tokens, **options}
    if not stream:
        return api.chat.completions.create(**common).choices[0].message.content or ""
    chunks = list(api.chat.completions.create(stream=True, **common))
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("stop", "length")
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.mark.parametrize("model_name", ["server", "plain"])
def test_32_clients_get_the_answers_that_each_request_gets_alone(
    model_name: str, request: pytest.FixtureRequest
) -> None:
    name, address = request.getfixturevalue(model_name)
    conversations = mixed(12)
    expected = {model: alone(name, plan, conversations) for model, plan in {**plans(name), "dense": None}.items()}
    before = metric(address, "plan_batch_size_count"), metric(address, "plan_batch_size_sum")
    asked = [(model, number) for number in range(len(conversations)) for model in expected]

    def check(work: tuple[int, tuple[str, int]]) -> str:
        turn, (model, number) = work
        found = ask(address, model, conversations[number], stream=turn % 2 == 0)
        wanted = expected[model][number]
        return "" if found == wanted else f"{model}, {number}: {found!r} for {wanted!r}"

    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = [one for one in pool.map(check, enumerate(asked)) if one]
    assert not wrong
    # Nobody was alone all the time, or nothing of this would have been shown.
    batches = metric(address, "plan_batch_size_count") - before[0]
    requests = metric(address, "plan_batch_size_sum") - before[1]
    assert requests == len(asked) and batches < 0.7 * requests
    assert len({answer for answers in expected.values() for answer in answers}) > 5


def test_long_answers_are_equal_too(server: Server) -> None:
    """Without a picture the models do not know where to end."""
    name, address = server
    conversations = [Asked.of(prompt, tokens=8 + 10 * (n % 4)) for n, (_, prompt) in enumerate(questions(8))]
    expected = alone(name, plans(name)["plan"], conversations)
    with ThreadPoolExecutor(len(conversations)) as pool:
        found = list(pool.map(lambda one: ask(address, "plan", one, True), conversations))
    assert found == expected
    assert max(map(len, expected)) > 60


def test_ten_questions_over_two_pictures_with_the_image_cache(server: Server) -> None:
    name, address = server
    pictures = [picture for picture, _ in questions(2)]
    conversations = [Asked.of(pictures[n % 2], prompt) for n, (_, prompt) in enumerate(questions(10, start=20))]
    expected = alone(name, plans(name)["cached"], conversations)
    before = metric(address, "plan_image_cache_hits_total")
    assert [ask(address, "cached", one, False) for one in conversations] == expected
    assert metric(address, "plan_image_cache_hits_total") - before >= 8
    assert metric(address, "plan_image_cache_bytes") > 0


def test_turns_as_a_client_holds_them(server: Server) -> None:
    """The history grows by what the server has answered, with a picture in the first and in the third turn."""
    name, address = server
    (first, one), (third, three), (_, two) = questions(3, start=40)
    asked: tuple[Any, ...] = ()
    api = client(address)
    messages: list[Any] = []
    for parts in ((first, one), (two,), (third, three), (one,)):
        asked = (*asked, ("user", parts))
        messages.append(Asked(asked).messages()[-1])
        answer = api.chat.completions.create(model="plan", messages=messages, max_tokens=8).choices[0].message
        assert [answer.content] == alone(name, plans(name)["plan"], [Asked(asked)])
        messages.append(answer)  # as it came
        asked = (*asked, ("assistant", (answer.content or "",)))
    assert len(asked) == 8


def test_usage_tells_what_the_plan_keeps(server: Server) -> None:
    _, address = server
    picture, prompt = questions(1)[0]
    messages: Any = Asked.of(picture, prompt).messages()
    api = client(address)
    found = {
        model: api.chat.completions.create(model=model, messages=messages, max_tokens=8).usage
        for model in ("plan", "fastv", "dense")
    }
    visual = {model: usage.visual_tokens for model, usage in found.items() if usage is not None}
    layers = [36] * 6 + [4] * 4  # 0.25 of 144 before the decoder, 4 behind layer 5
    assert visual["plan"] == {"prompt": 144, "kept": pytest.approx(sum(layers) / 10), "per_layer": layers}
    assert visual["fastv"] == {"prompt": 144, "kept": 0.2 * 144 + 0.8 * 72, "per_layer": [144] * 2 + [72] * 8}
    assert visual["dense"] == {"prompt": 144, "kept": 144, "per_layer": []}
    text: Any = Asked.of(prompt).messages()
    alone_text = api.chat.completions.create(model="plan", messages=text, max_tokens=8).usage
    assert alone_text is not None and alone_text.visual_tokens["prompt"] == 0
    # The picture is 144 tokens and a line end; the rest of the prompt is the same.
    assert {usage.prompt_tokens for usage in found.values()} == {alone_text.prompt_tokens + 145}
    last = list(
        api.chat.completions.create(
            model="plan", messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )[-1]
    assert not last.choices and last.usage == found["plan"]


def test_tokens_kept_and_dropped_are_counted(server: Server) -> None:
    _, address = server
    names = [f'plan_visual_tokens_total{{fate="{fate}",model="plan"}}' for fate in ("kept", "dropped")]
    before = [metric(address, one) for one in names]
    told = 0.0
    for picture, prompt in questions(2):
        messages: Any = Asked.of(picture, prompt).messages()
        usage: Any = client(address).chat.completions.create(model="plan", messages=messages, max_tokens=8).usage
        told += usage.visual_tokens["kept"]
    counted = [metric(address, one) - was for one, was in zip(names, before, strict=True)]
    assert counted == pytest.approx([told, 2 * 144 - told])
    assert 2 * (6 * 36 + 4) / 10 <= told <= 2 * (6 * 36 + 4 * 5) / 10


def test_usage_is_of_the_plan_that_answers(plain: Server) -> None:
    _, address = plain
    picture, prompt = questions(1)[0]
    messages: Any = Asked.of(picture, prompt).messages()
    usage: Any = client(address).chat.completions.create(model="plan", messages=messages, max_tokens=8).usage
    assert usage.visual_tokens["kept"] == pytest.approx((144 + 9 * 18) / 10)  # 18 behind layer 0


def test_stops_end_an_answer_before_them(server: Server) -> None:
    _, address = server
    one = Asked.of("what is it?", tokens=16)
    whole = ask(address, "plan", one, False)
    assert len(whole) > 12
    stop = whole[5:8]
    cut = whole[: whole.index(stop)]
    for stream in (False, True):
        assert ask(address, "plan", one, stream, stop=[stop, "never"]) == cut
        assert ask(address, "plan", one, stream, stop=f"{whole}!") == whole


def test_ignoring_the_end_goes_on_to_the_limit(server: Server) -> None:
    _, address = server
    picture, prompt = questions(1)[0]
    messages: Any = Asked.of(picture, prompt).messages()
    for ignore, tokens, finish in ((False, 2, "stop"), (True, 9, "length")):
        found = client(address).chat.completions.create(
            model="plan", messages=messages, max_tokens=9, extra_body={"ignore_eos": ignore}
        )
        assert (found.usage and found.usage.completion_tokens, found.choices[0].finish_reason) == (tokens, finish)


def test_draws_are_their_seeds_and_are_not_moved_by_company(server: Server) -> None:
    _, address = server
    one = Asked.of("what is it?", tokens=16)
    options: Any = {"temperature": 2.0}
    alone_drawn = [ask(address, "plan", one, False, seed=seed, **options) for seed in range(6)]
    likeliest = ask(address, "plan", one, False)
    assert len({*alone_drawn, likeliest}) == 7
    assert ask(address, "plan", one, False, seed=0, top_p=1e-6, **options) == likeliest
    with ThreadPoolExecutor(12) as pool:
        greedy = pool.map(lambda _: ask(address, "plan", one, False), range(6))
        together = pool.map(lambda seed: ask(address, "plan", one, False, seed=seed, **options), range(6))
        assert list(together) == alone_drawn
        assert set(greedy) == {likeliest}


def test_models_are_listed_with_their_plans(server: Server) -> None:
    name, address = server
    listed = {one.id: one for one in client(address).models.list()}
    assert set(listed) == {*plans(name), "dense"}
    assert listed["plan"].policy == plans(name)["plan"].decision.policy and listed["plan"].proven
    assert not listed["fastv"].proven
    assert client(address).models.retrieve("plan").plan_sha256 == plans(name)["plan"].plan_sha256
    assert httpx2.get(f"{address}/health").json() == {"status": "ok"}
