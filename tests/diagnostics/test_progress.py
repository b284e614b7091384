"""Progress where no person watches: plain lines, one each half minute by a clock that the tests move."""

import pytest

from diagnostics.progress import EVERY, Progress, Steps, counted, duration, hushed


class Clock:
    """Time that passes only when it is waited for."""

    def __init__(self, waits: int) -> None:
        self.now, self.left = 0.0, waits

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        """Let the seconds pass; True after so many times."""
        self.now += seconds
        self.left -= 1
        return self.left < 0


def test_a_line_says_step_time_and_what_is_left():
    """Ten of forty steps, after ten that an earlier start did, took 60 s; the twenty that are left take 120."""
    clock = Clock(0)
    with Steps("training", 40, before=10, show=False, clock=clock) as steps:
        assert steps.line() == "training: step 10 of 40, 0 s so far, time left not known yet"
        clock.now = 60
        steps.add(10, "loss=0.500")
        assert steps.line() == "training: step 20 of 40, loss=0.500, 1 min so far, about 2 min left"


def test_a_line_is_written_every_half_minute_until_the_end(capsys):
    clock = Clock(3)
    steps = Steps("trace", 4, unit="check\x1bpoint", clock=clock, wait=clock.wait)
    steps.thread.join()
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"trace: check\\x1bpoint 0 of 4, {duration(EVERY * n)} so far, time left not known yet" for n in (1, 2, 3)
    ]


def test_the_line_ends_with_the_work(capsys):
    with Steps("training", 2) as steps:
        assert steps.thread.is_alive()
    steps.thread.join()
    assert capsys.readouterr().err == ""


def test_the_line_ends_with_work_that_breaks_off(capsys):
    with pytest.raises(RuntimeError), Steps("training", 2) as steps:
        raise RuntimeError
    steps.thread.join()


def test_pairs_are_counted_and_time_goes_by_tokens(make_pairs):
    pairs = make_pairs(6)
    with Progress("scoring", pairs, before=4, show=False) as bar:
        bar.add(pairs[:5])
        assert "scoring: 9/10 pairs, " in bar.steps.line()
        assert " left" in bar.steps.line()


def test_work_inside_is_hushed(capsys):
    with hushed():
        with hushed():
            pass
        steps = Steps("training", 2)
        assert steps.thread is None
        steps.close()
    with Steps("training", 2) as steps:
        assert steps.thread is not None


def test_items_are_passed_on_and_counted():
    assert list(counted("abc", "runs", 3, unit="run", show=False)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
