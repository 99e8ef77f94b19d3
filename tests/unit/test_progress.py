"""The bar over a calibration, by a clock that the test turns: what is left, and how it changes as work is done."""

from __future__ import annotations

import io

import pytest

from calibrate.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def progress(clock, lines):
    return Progress(lines.append, stream=io.StringIO(), clock=clock)


def work(progress, clock, task, units, seconds):
    with progress.step(task, units):
        clock.now += seconds


def test_what_is_left_is_units_times_their_pace(progress, clock):
    assert progress.expect("measuring", 10, 2.0) == 20
    assert progress.expect("searching", 100, 0.5) == 50
    assert progress.left_s == 70 and progress.share == 0
    work(progress, clock, "measuring", 2, 2.0)  # twice as fast as was thought, which weighs as much as 1 unit of 10
    left = 8 * (2 * 1.0 + 1 * 2.0) / 3 + 50
    assert progress.left_s == pytest.approx(left)
    assert progress.share == pytest.approx(2 / (2 + left))
    work(progress, clock, "measuring", 8, 8.0)
    assert progress.left_s == 50


def test_a_task_takes_the_pace_of_one_it_is_like_until_it_has_its_own(progress, clock):
    progress.expect("searching", 10, 1.0)
    progress.expect("evaluating", 100, like="searching")
    assert progress.left_s == 110
    work(progress, clock, "searching", 5, 17.0)
    assert progress.left_s == pytest.approx(5 * 3 + 100 * 3)  # 17 s and one unit of 1 s over 6
    work(progress, clock, "evaluating", 10, 10.0)
    assert progress.left_s == pytest.approx(5 * 3 + 90 * 2)  # 10 s and ten units of 3 s over 20


def test_nothing_is_done_until_it_is_known_how_long_the_rest_takes(progress, clock, lines):
    """The first task of a calibration on a slow machine: it said 100 %, and no second left, for minutes."""
    progress.expect("answering", 4)
    progress.expect("searching", 100, like="answering")
    with progress.step("answering", 1):
        clock.now += 60
        progress.show()
        assert lines == ["answering: 0% done, time left not known yet"] and progress.share == 0
    assert progress.left_s == 103 * 60 and progress.share == pytest.approx(1 / 104)
    work(progress, clock, "answering", 3, 180.0)
    assert lines[-1] == "answering: 4% done, about 1.7 h left"


def test_a_task_that_ends_early_takes_its_rest_along(progress, clock):
    progress.expect("searching", 100, 1.0)
    progress.expect("proving", 10, 1.0)
    work(progress, clock, "searching", 30, 30.0)
    progress.left_now("searching", 0)
    assert progress.left_s == 10 and progress.share == pytest.approx(30 / 40)


def test_a_long_step_moves_the_bar_while_it_runs_but_not_to_its_end(progress, clock):
    progress.expect("measuring", 4, 10.0)
    seen = []
    with progress.step("measuring", 4):
        for _ in range(6):
            clock.now += 10
            seen.append((progress.left_s, progress.share))
    assert [left for left, _ in seen] == [30, 20, 10, 2, 2, 2]
    shares = [share for _, share in seen]
    assert shares == sorted(shares) and len(set(shares)) == 6 and shares[-1] < 1
    assert progress.left_s == 0 and progress.share == 1


def test_the_share_never_falls_unless_a_task_is_new(progress, clock):
    progress.expect("measuring", 2, 1.0)
    work(progress, clock, "measuring", 1, 1.0)
    before = progress.share
    progress.left_now("measuring", 50)
    assert progress.share == before == 0.5
    progress.expect("evaluating", 10, 1.0)
    assert progress.share == pytest.approx(1 / 61)


def test_more_than_was_expected_leaves_nothing_below_zero(progress, clock):
    progress.expect("proving", 1, 1.0)
    work(progress, clock, "proving", 3, 3.0)
    work(progress, clock, "unannounced", 1, 1.0)
    assert progress.left_s == 0 and progress.share == 1


def test_a_step_that_fails_is_not_counted(progress, clock):
    progress.expect("measuring", 2, 1.0)
    with pytest.raises(KeyError), progress.step("measuring", 1):
        clock.now += 50
        raise KeyError
    assert progress.left_s == 2


def test_a_log_gets_a_line_now_and_then(progress, clock, lines):
    progress.expect("searching", 100, 1.0)
    for _ in range(100):
        work(progress, clock, "searching", 1, 1.0)
    assert lines == [
        "searching: 30% done, about 70 s left",
        "searching: 60% done, about 40 s left",
        "searching: 90% done, about 10 s left",
    ]


def test_a_terminal_gets_a_bar_and_lines_above_it(clock, lines):
    screen = Terminal()
    with Progress(lines.append, stream=screen, clock=clock) as progress:
        progress.expect("searching", 4, 50.0)
        work(progress, clock, "searching", 1, 50.0)
        progress.say("a line")
        clock.now += 500
        progress.show()
    shown = screen.getvalue()
    assert " 25%|" in shown and "searching, about 2 min left" in shown
    assert lines == ["a line"], "no lines for logs beside the bar"
    assert shown.endswith("\r"), "the bar is taken away"


def test_whoever_does_not_watch_sees_nothing(clock, lines):
    screen = Terminal()
    with Progress(lines.append, stream=screen, watched=False, clock=clock) as progress:
        progress.expect("searching", 1, 100.0)
        work(progress, clock, "searching", 1, 100.0)
    assert not lines and not screen.getvalue()
