"""The types between the parts of ingest: what each asks of the others, so that none knows the process as a whole."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from ingest.held_bodies import HeldBytes
from pipeline.errors import SluiceError
from pipeline.event import Event

JSON: Final = "application/json"


class Headers(Protocol):
    """The header fields of a request."""

    def get(self, name: str, /) -> str | None:
        """The first value of a field, whose name is in lower case; None if the request does not have it."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response, free of any web framework. `headers` are those beside length, type and request id."""

    status: int
    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Decode = Callable[[bytes], Awaitable[list[Event]]]


@dataclass(frozen=True, slots=True)
class Codec:
    """A protocol: how its bodies become events, and how its clients are answered.

    `decode` looks at the headers, before a body is read, and returns what decodes the inflated body. Both raise
    RequestError. `accepted` gets the number of events that are durable; `rejected` gets why none of them is known to
    be.
    """

    decode: Callable[[Headers], Decode]
    accepted: Callable[[int], Response]
    rejected: Callable[[SluiceError], Response]


class Request(Protocol):
    """A request whose body has not been read."""

    @property
    def headers(self) -> Headers: ...

    @property
    def request_id(self) -> str: ...

    async def receive_body(self, bytes_max: int, held: HeldBytes) -> bytes:
        """The body as it was sent; its bytes are counted in `held`. Raises BodyTooLargeError, OverloadedError."""


class Gate(Protocol):
    """What refuses requests whatever they hold, before they are read."""

    def seconds_closed(self) -> float:
        """For how long it refuses all requests, as far as known; 0 if it does not, infinite if nobody knows."""

    def refusal(self) -> SluiceError | None:
        """Why it refuses; None if it does not. Costs more than to ask for the seconds."""


@dataclass(slots=True)
class Lifecycle:
    """Where a process is between its start and its end; one object, shared by all its parts."""

    is_stopping: bool = False  # it takes no new events, and its responses close their connections
