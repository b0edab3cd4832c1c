"""Gives each request an id, so that an event can be traced from its request to the batch that stored it.

A client may send an id in X-Request-ID. It is in the response and in logs. It goes with the request's events through
the event log into the column `request_id`. An invalid id is silently replaced: it is a label, and not important enough
to reject a request.
"""

import re
import secrets
from itertools import count
from typing import Final

HEADER: Final = "x-request-id"
CHARS_MAX: Final = 64
# It contains no character that has a meaning in JSON, in a log line or in a shell.
_GIVEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+=@-]{0,63}", re.ASCII)
_GIVEN_BYTES: Final = re.compile(_GIVEN.pattern.encode())
_PROCESS_BYTES: Final = 6


class RequestIds:
    """Creates request ids: a random prefix of the process, then a number. Half as long as a UUID in every row."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(_PROCESS_BYTES)
        self.prefix = f"{self._process}-".encode()  # of each id
        self.numbers = count(1)  # the next of them and the prefix are an id that no other request of any process has

    def of(self, given: str | None = None) -> str:
        """The client's id for its request if it is valid, or one that no other request of any process has."""
        if given is not None and _GIVEN.fullmatch(given):
            return given
        return f"{self._process}-{next(self.numbers)}"


def is_valid(given: bytes) -> bool:
    """Whether a client's id for its request is valid, as it was sent."""
    return _GIVEN_BYTES.fullmatch(given) is not None
