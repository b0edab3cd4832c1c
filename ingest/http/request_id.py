"""Names each request, so that an event can be followed from its request to the batch that stored it.

A client may give a name with X-Request-ID; it is answered, logged, and travels with the request's events through the
log into the column `request_id`. What is not such a name is replaced in silence: it is a label, no part of the contract
worth refusing a request for.
"""

import re
import secrets
from itertools import count
from typing import Final

HEADER: Final = "x-request-id"
CHARS_MAX: Final = 64
# Nothing in it means anything to JSON, to a log's line or to a shell.
_GIVEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+=@-]{0,63}", re.ASCII)
_PROCESS_BYTES: Final = 6


class RequestIds:
    """Names requests: at random for the process, then by number: half as long as a UUID in every row."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(_PROCESS_BYTES)
        self._numbers = count(1)

    def new(self) -> str:
        """A name that no other request of any process has."""
        return f"{self._process}-{next(self._numbers)}"

    def of(self, given: str | None) -> str:
        """The client's name for its request where it is one, or a new one."""
        return given if given is not None and _GIVEN.fullmatch(given) else self.new()
