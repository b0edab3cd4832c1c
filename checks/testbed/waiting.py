"""Waiting for a condition, on a machine that may be slow and busy."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

# The longest time that a test waits for a condition. It only ends a test that would wait forever. An action of a tenth
# of a second on an idle machine takes ten seconds while other tests start a JVM, and one of six takes a minute. A test
# of a time limit measures the time itself.
WAIT_SECONDS_MAX: Final = 120.0
# The same for a program that a test runs to its end.
RUN_SECONDS_MAX: Final = 300.0
# A busy machine may add this to the time of a single try. A test of a time limit adds it to the limit, if a program
# that breaks the limit would hang, or would take several times as long.
BUSY_SECONDS: Final = 10.0
# APPEND_SECONDS_MAX in tests of something else. By default an append may take a second, and then its outcome is
# unknown: a busy machine may stall for that long.
PATIENT_APPEND_SECONDS: Final = 15.0
APPEND_SECONDS_LONGEST: Final = 30.0  # as long as the setting may be, for appends that must be made once
# The same for SINK_CALL_SECONDS_MAX, by default two seconds.
PATIENT_SINK_SECONDS: Final = 10.0
PATIENT_CONNECT_SECONDS: Final = 20  # the same for SINK_CONNECT_SECONDS_MAX


def eventually(
    condition: Callable[[], object], what: str = "the condition", *, seconds_max: float = WAIT_SECONDS_MAX,
    look_seconds: float = 0.01, passing: tuple[type[Exception], ...] = (),
) -> float:  # fmt: skip
    """Wait until a condition holds. An error of `passing` counts as a condition that does not hold yet.

    Returns the seconds until the last failed check began: a busy machine between two checks adds nothing to that.
    """
    started = time.monotonic()
    deadline, seen_at = started + seconds_max, started
    while True:
        looks_at = time.monotonic()
        try:
            if condition():
                return seen_at - started
        except passing:
            pass
        seen_at = looks_at
        assert time.monotonic() < deadline, f"not within {seconds_max:g} s: {what}"
        time.sleep(look_seconds)


async def eventually_in_loop(condition: Callable[[], object], *, look_seconds: float = 0.002) -> None:
    """The same in an event loop, which keeps running."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS_MAX:g} s"
        await asyncio.sleep(look_seconds)


def while_it_lasts(attempt: Callable[[float], None], seconds: float, *, seconds_max: float = RUN_SECONDS_MAX) -> float:
    """Attempt what must be done before a time is over, such as that of a lease; returns the time that was enough.

    `attempt` gets the time in seconds, lets something last for so long, and looks at it. If it fails after its time, a
    busy machine may be the cause: then it is made again with four times as much. A failure within the time counts.
    """
    while True:
        started = time.monotonic()
        try:
            attempt(seconds)
        except AssertionError:
            if time.monotonic() - started < seconds or 4 * seconds > seconds_max:
                raise
            seconds *= 4
        else:
            return seconds


def least_seconds(what_takes: Callable[[], float], below: float, *, tries_max: int = 30) -> float:
    """The shortest time of several tries; the first try that takes less than `below` is the last.

    It tests a promise that something takes no longer than some time. A busy machine makes times longer, never shorter.
    """
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    took = what_takes()
    for _ in range(tries_max - 1):
        if took < below or time.monotonic() > deadline:
            break
        took = min(took, what_takes())
    return took


def wait_until(condition: Any, what: str, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
    """`eventually` with longer pauses between checks."""
    eventually(condition, what, seconds_max=seconds_max, look_seconds=0.05)
