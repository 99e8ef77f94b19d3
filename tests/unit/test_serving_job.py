"""Text that grows token by token, and how an answer ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.serving.job import Growth, Job


def spelled(tokens: list[int]) -> str:
    """Tokens are bytes, of which letters beyond ASCII need several."""
    return bytes(tokens).decode("utf-8", errors="replace")


def pieces(text: str, *stops: str) -> list[str]:
    growth, tokens, found = Growth(spelled, stops), [], []
    for byte in text.encode():
        tokens.append(byte)
        found.append(growth.read(tokens))
        if growth.stopped:
            return found
    return [*found, growth.read(tokens, final=True)]


@given(st.text(max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_pieces_make_up_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    """Whatever the text: what was shown is never taken back, and is what a search of the whole text gives."""
    # Of two stops, one inside the other, the one that is complete first ends the answer.
    complete = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=len(text))
    first = min((at for stop in stops if (at := text[:complete].find(stop)) >= 0), default=len(text))
    assert "".join(pieces(text, *stops)) == text[:first]


def test_half_letters_and_half_stops_are_held_back() -> None:
    assert pieces("aé!") == ["a", "", "é", "!", ""]
    assert pieces("a<b<end>c", "<end>") == ["a", "", "<b", "", "", "", "", ""]
    assert pieces("a<e", "<end>") == ["a", "", "", "<e"]


def job(limit: int = 5, *stops: str, watched: bool = True) -> tuple[Job, list[str | None]]:
    told: list[str | None] = []
    made = Job(
        model="m", inputs={}, shape=0, prompt_tokens=7, visual_tokens=4, limit=limit, temperature=0, top_p=1, seed=None,
        ends=frozenset({0}), growth=Growth(lambda ids: spelled([i for i in ids if i]), stops), watched=watched,
        tell=told.append,
    )  # fmt: skip
    return made, told


def test_an_answer_ends_with_its_end_token() -> None:
    made, told = job()
    assert [made.take(token) for token in (*b"ab", 0)] == [False, False, True]
    assert (made.finish, told, made.tokens) == ("stop", ["a", "b", None], [*b"ab", 0])


def test_an_answer_ends_at_its_limit() -> None:
    made, told = job(2)
    assert [made.take(token) for token in b"ab"] == [False, True]
    assert (made.finish, told) == ("length", ["a", "b", None])


@pytest.mark.parametrize("watched", [True, False])
def test_an_answer_ends_before_a_stop(watched: bool) -> None:
    made, told = job(9, "bc", watched=watched)
    assert [made.take(token) for token in b"abc"] == [False, False, True]
    assert (made.finish, told) == ("stop", ["a", None])


def test_nobody_watches_and_is_told_at_the_end() -> None:
    made, told = job(watched=False)
    assert [made.take(token) for token in (*b"ab", 0)][-1] and told == ["ab", None]


def test_a_cancelled_job_takes_nothing() -> None:
    made, told = job()
    made.cancelled = True
    assert made.take(97) and not made.tokens and not told


def test_kept_is_the_mean_over_layers() -> None:
    made, _ = job()
    assert made.kept == 4
    made.begin((4, 4, 1, 0))
    assert made.kept == 2.25 and made.usage()["visual_tokens"] == {"prompt": 4, "kept": 2.25, "per_layer": [4, 4, 1, 0]}
