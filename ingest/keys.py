"""The API keys as an ingest process knows them: who sent a request, by its header fields.

    X-Api-Key: KEY
    Authorization: Bearer KEY | Splunk KEY | ApiKey KEY | ApiKey base64(ID:KEY) | Basic base64(USER:KEY)

X-Api-Key counts before Authorization, which may be meant for a proxy in between. A key is found by its SHA-256, so no
comparison depends on the key of anybody else. `X-Scope-OrgID` and the user of Basic are no proof, and are ignored.
"""

import base64
import binascii
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ingest.errors import ForbiddenError, KeysUnknownError, UnauthorizedError
from pipeline.clock import Clock
from pipeline.errors import SluiceError
from pipeline.keys import ApiKey, digest_of
from pipeline.names import LEVEL_HIGHEST, KeyRefusal, Level, ProtocolName
from pipeline.ports.keys import KeyMirror

logger = logging.getLogger(__name__)

SEEN_MAX: Final = 4096  # header values of valid keys that are remembered
CLOCK_STEP_SECONDS: Final = 5.0  # of the control store's clock, above which the ends of keys are found again
_OR_CERTIFICATE: Final = (
    "this request needs an API key, or its connection a client's certificate with a name that can be an account"
)
# A word that this version does not know must not raise a key.
_LEVELS: Final = {None: LEVEL_HIGHEST} | {level.label: level for level in Level}
STORED_SECONDS: Final = 2.0  # between two reads of PostgreSQL, while neither it nor the mirror has answered


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What holds for the requests with a key."""

    account: str
    protocols: frozenset[str] | None  # None: all
    expires_at: float | None  # monotonic
    level_max: Level = LEVEL_HIGHEST  # that its requests may have


class KeyRing:
    """The valid keys. For the event loop only, but for `by_digest`."""

    def __init__(self, clock: Clock, *, or_certificate: bool = False) -> None:
        """`or_certificate`: a client's certificate stands for a key. Only errors say it here."""
        self._clock = clock
        self._missing_words = _OR_CERTIFICATE if or_certificate else None
        self._by_digest: dict[str, KnownKey] | None = None  # None: unknown
        self._seen: dict[str, KnownKey] = {}  # by the value of Authorization
        self._seen_plain: dict[str, KnownKey] = {}  # by the value of X-Api-Key
        self.version = 0  # changes whenever the keys do

    @property
    def is_known(self) -> bool:
        """Whether the keys are known at all."""
        return self._by_digest is not None

    @property
    def count(self) -> int | None:
        """The number of keys; None if it is unknown."""
        return None if self._by_digest is None else len(self._by_digest)

    def note(self, keys: Iterable[ApiKey], time: float) -> None:
        """Take all keys; see `by_digest`."""
        self.take(self.by_digest(keys, time))

    def by_digest(self, keys: Iterable[ApiKey], time: float) -> dict[str, KnownKey]:
        """The keys for `take`; on any thread, since many keys take long.

        `time` is that of the clock by which they expire, in seconds since the epoch.
        """
        now = self._clock.monotonic()
        return {
            key.digest: KnownKey(
                key.account,
                frozenset(key.protocols) if key.protocols else None,
                None if key.expires is None else now + key.expires - time,
                _LEVELS.get(key.level, Level.DEBUG),
            )
            for key in keys
        }

    def take(self, by_digest: dict[str, KnownKey]) -> None:
        """Take all keys."""
        self._by_digest = by_digest
        self._seen, self._seen_plain = {}, {}
        self.version += 1

    def find(self, plain: str | None, authorization: str | None) -> KnownKey:
        """The key of a request by its header fields. Raises UnauthorizedError, KeysUnknownError."""
        seen, value = (self._seen, authorization) if plain is None else (self._seen_plain, plain)
        found = None if value is None else seen.get(value)
        if found is not None:
            return found
        if self._by_digest is None:
            raise KeysUnknownError
        if value is None:
            raise UnauthorizedError(KeyRefusal.MISSING, self._missing_words)
        candidates = (plain,) if plain is not None else candidates_in(value)
        for candidate in candidates:
            found = self._by_digest.get(digest_of(candidate))
            if found is not None:
                if len(seen) >= SEEN_MAX:
                    seen.clear()
                seen[value] = found
                return found
        raise UnauthorizedError(KeyRefusal.UNKNOWN)

    def check(self, known: KnownKey, protocol: ProtocolName | None) -> None:
        """Raise UnauthorizedError if a key has expired, ForbiddenError if it is not for this protocol."""
        if known.expires_at is not None and self._clock.monotonic() >= known.expires_at:
            raise UnauthorizedError(KeyRefusal.EXPIRED)
        if protocol is not None and known.protocols is not None and protocol.value not in known.protocols:
            raise ForbiddenError(KeyRefusal.PROTOCOL)


def candidates_in(authorization: str) -> tuple[str, ...]:
    """What may be the key in the value of Authorization; empty if it has another form."""
    scheme, _, value = authorization.partition(" ")
    value = value.strip(" ")
    match scheme.lower():
        case "bearer" | "splunk":
            return (value,)
        case "apikey":  # clients of Elasticsearch encode ID:KEY
            return (value, _second(value))
        case "basic":
            return (_second(value),)
        case _:
            return ()


def _second(encoded: str) -> str:
    """The part after the colon of an encoded pair; empty if it is none."""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


class KeyReader:
    """Reads the keys for a ring whenever their version changes. For the follower's thread.

    Keys expire by the control store's clock. If that clock is stepped, the ring gets the same keys with the new time: a
    process that started while it was wrong must not refuse valid keys, or accept expired ones, for as long as it runs.

    While the mirror is unknown or does not answer, and no keys were ever read, it reads PostgreSQL. A process that
    knows keys keeps them.
    """

    def __init__(
        self,
        mirror: KeyMirror,
        load_stored: Callable[[], Iterable[ApiKey]],
        clock: Clock,
        on_keys: Callable[[tuple[ApiKey, ...], float], None],
    ) -> None:
        self._mirror = mirror
        self._load_stored = load_stored
        self._clock = clock
        self._on_keys = on_keys
        self._version: str | None = None  # of the mirror that was read
        self._keys: tuple[ApiKey, ...] | None = None  # None: none were ever read
        self._ahead = 0.0  # of the clock by which the ring's keys expire, before the monotonic clock
        self._stored_at: float | None = None  # when PostgreSQL was asked

    def note_state(self, version: str | None, time: float) -> None:
        """Take the version of the mirror, read at `time` of its clock. Raises StoreUnavailableError."""
        if version is None:
            self.note_unavailable()
        elif version != self._version:
            mirrored = self._mirror.load()
            if mirrored is not None:
                self._version = mirrored.version
                self._pass_on(mirrored.keys, time)
        elif self._keys is not None:
            step = time - self._clock.monotonic() - self._ahead
            if abs(step) > CLOCK_STEP_SECONDS:
                logger.warning(
                    "the control store's clock was stepped by %.0f s: API keys expire by its new time",
                    step,
                    extra={"action": "keys_clock_stepped"},
                )
                self._pass_on(self._keys, time)

    def note_unavailable(self) -> None:
        """The mirror does not answer, or is unknown."""
        now = self._clock.monotonic()
        if self._keys is not None or (self._stored_at is not None and now - self._stored_at < STORED_SECONDS):
            return
        self._stored_at = now
        try:
            keys = tuple(self._load_stored())
        except SluiceError as error:
            logger.warning("no API keys are known: %s", error, extra={"action": "keys_unknown"})
        else:
            self._pass_on(keys, self._clock.now())

    def _pass_on(self, keys: tuple[ApiKey, ...], time: float) -> None:
        self._keys, self._ahead = keys, time - self._clock.monotonic()
        self._on_keys(keys, time)
