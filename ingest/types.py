"""The types between the parts of ingest: what each needs from the others, so that none depends on the whole process."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from ingest.account_counter import AccountCounter
from ingest.held_bodies import HeldBytes
from pipeline.errors import SluiceError
from pipeline.event import Event
from pipeline.names import LEVEL_HIGHEST, Level, ProtocolName

JSON: Final = "application/json"


class Headers(Protocol):
    """The header fields of a request."""

    def get(self, name: str, /) -> str | None:
        """The first value of a field; `name` is in lower case. None if the request does not have the field."""


# These two are made in each request. A frozen dataclass takes several times as long to make as a Struct.


class Response(msgspec.Struct, frozen=True):
    """A complete response, independent of any web framework. `headers` are all but length, type and request id."""

    status: int
    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


class Batch(msgspec.Struct, frozen=True):
    """The events of a body. All of them are admitted and appended, or none.

    `accepted` creates the response once all events are durable. `partition_keys` has the key of each event that decides
    its partition; None: these are the correlation ids. `rejected` is the number of records that became no event.
    """

    events: list[Event]
    accepted: Callable[[], Response]
    partition_keys: Sequence[str] | None = None
    rejected: int = 0


class RequestHead(Protocol):
    """What is known of a request before its body is read."""

    @property
    def headers(self) -> Headers: ...

    @property
    def target(self) -> str:
        """The path, with the query if there is one, as the client sent them."""


@dataclass(frozen=True, slots=True)
class Head:
    """A head by itself, without a connection."""

    headers: Headers
    target: str


Inflate = Callable[[bytes, HeldBytes], Awaitable[bytes]]
Decode = Callable[[bytes], Awaitable[Batch]]


def _one_form(_headers: Headers) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Codec:
    """A protocol: how its bodies become events, and how its clients are answered.

    `inflate` and `decode` read the head, before a body is read. `inflate` returns the function that removes the content
    coding, or None if there is none. `decode` returns the function that decodes the inflated body. All four raise
    RequestError. `rejected` creates the response to an error: no event is known to be durable. `bytes_max` is the limit
    of a body, before and after it is inflated. `is_one_way`: its clients may close the connection as soon as they have
    sent a request, so a request whose body has arrived is collected nevertheless. `form` returns a short key of the
    head: heads with the same key get the same response from `rejected`, so early rejections cache it by this key.
    """

    name: ProtocolName
    bytes_max: int
    inflate: Callable[[Headers], Inflate | None]
    decode: Callable[[RequestHead], Decode]
    rejected: Callable[[RequestHead, SluiceError], Response]
    is_one_way: bool = False
    form: Callable[[Headers], str] = _one_form


@dataclass(frozen=True, slots=True)
class Route:
    """An address for events: a path of Sanic's router, its methods, and the codec of its requests.

    Several routes may share a path if the parameter `format` of the query distinguishes them.
    """

    path: str
    codec: Codec
    methods: tuple[str, ...] = ("POST",)
    format: str | None = None


@dataclass(frozen=True, slots=True)
class Inquiry:
    """An address that the clients of a protocol ask before they send events: a path of Sanic's router, its answer."""

    path: str
    answer: Callable[[RequestHead], Response]
    methods: tuple[str, ...] = ("GET", "HEAD")


class Request(RequestHead, Protocol):
    """A request with an unread body."""

    @property
    def request_id(self) -> str: ...

    def identify(self, protocol: ProtocolName | None) -> AccountCounter:
        """The tally of its account.

        Raises UnauthorizedError, ForbiddenError, KeysUnknownError: for its API key, if there must be one.
        """

    @property
    def level_max(self) -> Level:
        """The highest level that it may have, once it is identified."""

    async def receive_body(self, bytes_max: int, held: HeldBytes) -> bytes:
        """The body as it was sent; `held` counts its bytes.

        Raises BodyTooLargeError, OverloadedError, and those of `identify` for a key that ended meanwhile.
        """


class Gate(Protocol):
    """Rejects requests before they are read, whatever they contain: all of them, or those of one account."""

    def is_open(self) -> bool:
        """Whether it certainly rejects none now, but for the limits of accounts. The cheapest of these."""

    @property
    def has_levels(self) -> bool:
        """Whether requests have levels at all (ADMISSION_LEVELS)."""

    @property
    def admits_all_levels(self) -> bool:
        """Whether no level is rejected before the others."""

    def level_of(self, priority: str | None, level_max: Level = LEVEL_HIGHEST) -> Level | None:
        """The level of a request by its header Priority, at most `level_max`; None if only its events can tell."""

    def seconds_closed(self, level: Level = LEVEL_HIGHEST) -> float:
        """Seconds for which it rejects all requests of a level and below, as far as known; 0 if it does not.

        Infinite if unknown.
        """

    def seconds_closed_for(self, tally: AccountCounter) -> float:
        """Seconds for which it rejects the requests of an account for its own limit; 0 if it does not."""

    def refusal(self, level: Level = LEVEL_HIGHEST, tally: AccountCounter | None = None) -> SluiceError | None:
        """The reason for rejecting, of an account (None: of all); None if it does not reject. Costs more than these."""

    def note_rejected(self, level: Level | None) -> None:
        """Count a request that was rejected unread; the level is None if only its events could tell."""


@dataclass(slots=True)
class Lifecycle:
    """The state of a process between its start and its end; one object, shared by all its parts."""

    is_stopping: bool = False  # it accepts no new events, and its responses close their connections
