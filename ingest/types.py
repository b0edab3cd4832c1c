"""The types between the parts of ingest: what each needs from the others, so that none depends on the whole process."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from ingest.held_bodies import HeldBytes
from pipeline.errors import SluiceError
from pipeline.event import Event
from pipeline.names import LEVEL_HIGHEST, Level

JSON: Final = "application/json"


class Headers(Protocol):
    """The header fields of a request."""

    def get(self, name: str, /) -> str | None:
        """The first value of a field; `name` is in lower case. None if the request does not have the field."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response, independent of any web framework. `headers` are all but length, type and request id."""

    status: int
    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Decode = Callable[[bytes], Awaitable[list[Event]]]


@dataclass(frozen=True, slots=True)
class Codec:
    """A protocol: how its bodies become events, and how its clients are answered.

    `decode` reads the headers, before a body is read, and returns the function that decodes the inflated body. Both
    raise RequestError. `accepted` gets the number of events that are durable. `rejected` gets the reason why no event
    is known to be durable.
    """

    decode: Callable[[Headers], Decode]
    accepted: Callable[[int], Response]
    rejected: Callable[[SluiceError], Response]


class Request(Protocol):
    """A request with an unread body."""

    @property
    def headers(self) -> Headers: ...

    @property
    def request_id(self) -> str: ...

    async def receive_body(self, bytes_max: int, held: HeldBytes) -> bytes:
        """The body as it was sent; `held` counts its bytes. Raises BodyTooLargeError, OverloadedError."""


class Gate(Protocol):
    """Rejects requests before they are read, whatever they contain."""

    @property
    def admits_all_levels(self) -> bool:
        """Whether no level is rejected before the others."""

    def level_of(self, priority: str | None) -> Level | None:
        """The level of a request by its header Priority; None if only its events can tell."""

    def seconds_closed(self, level: Level = LEVEL_HIGHEST) -> float:
        """Seconds for which it rejects all requests of a level and below, as far as known; 0 if it does not.

        Infinite if unknown.
        """

    def refusal(self, level: Level = LEVEL_HIGHEST) -> SluiceError | None:
        """The reason for rejecting; None if it does not reject. Costs more than `seconds_closed`."""

    def note_rejected(self, level: Level | None) -> None:
        """Count a request that was rejected unread; the level is None if only its events could tell."""


@dataclass(slots=True)
class Lifecycle:
    """The state of a process between its start and its end; one object, shared by all its parts."""

    is_stopping: bool = False  # it accepts no new events, and its responses close their connections
