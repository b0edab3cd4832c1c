"""Whether a client lost or doubled an event, against the promise of its page in docs/protocols."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

_SHOWN = 5  # the most message numbers in one problem


class Situation(StrEnum):
    """The fault in one run of a client."""

    LIMIT = "429"  # for a part of the run, the rate limit is far below the client's rate
    CUT = "a cut connection"  # once, after a request is stored and before it is answered
    RESTART = "a restart of ingest"  # in the middle of the run


class May(StrEnum):
    """A fault that a client's design allows in a situation; its page documents it."""

    LOSE = "loses"
    DOUBLE = "doubles"


@dataclass(frozen=True)
class Outcome:
    """One run: the number of messages for the client to send, and their rows in PostgreSQL."""

    sent: int
    rows: Mapping[int, int]  # the number of a message -> its rows
    problems: Sequence[str] = ()  # of the run itself: the situation did not happen, or the client did not end

    @property
    def lost(self) -> list[int]:
        """The messages without a row."""
        return [number for number in range(self.sent) if number not in self.rows]

    @property
    def doubled(self) -> list[int]:
        """The messages with more than one row."""
        return sorted(number for number, count in self.rows.items() if count > 1)

    @property
    def unknown(self) -> list[int]:
        """Stored numbers that the client did not send."""
        return sorted(number for number in self.rows if not 0 <= number < self.sent)


def judge(outcome: Outcome, may: frozenset[May] = frozenset()) -> list[str]:
    """The problems of a run; none: the client kept its page's promise."""
    problems = list(outcome.problems)
    if not outcome.rows:
        problems.append("nothing is stored")
    elif outcome.lost and May.LOSE not in may:
        problems.append(_some("lost", outcome.lost))
    if outcome.doubled and May.DOUBLE not in may:
        problems.append(_some("doubled", outcome.doubled))
    if outcome.unknown:
        problems.append(_some("stored without being sent:", outcome.unknown))
    return problems


def _some(word: str, numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (" …" if len(numbers) > _SHOWN else "")
    return f"{word} {len(numbers)} (number {shown})"
