"""API keys in an ingest process: the fields of a request, what is refused, and what a connection remembers."""

import base64
import contextlib
import itertools
import timeit
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import pytest

from ingest.accounts import Accounts, Client
from ingest.errors import (
    ForbiddenError,
    KeyRefusedError,
    KeysUnknownError,
    UnauthorizedError,
    error_response,
)
from ingest.keys import SEEN_MAX, STORED_SECONDS, KeyReader, KeyRing
from ingest.server import refuse_public
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryKeyMirror, MemoryServer
from pipeline.errors import SettingsError, SinkUnavailableError
from pipeline.follower import WAIT_SECONDS
from pipeline.keys import ApiKey, digest_of, make_key
from pipeline.names import KeyRefusal, ProtocolName
from pipeline.secrets import hide_secrets
from pipeline.settings import Settings
from stack.servers import IDLE_TIMER_HZ

SHOP, SHOP_ID = make_key()
OTHER, OTHER_ID = make_key()
_NUMBERS = itertools.count()
EVENTS = ProtocolName.EVENTS


def stored(key: str, key_id: str, name: str, **changes: Any) -> ApiKey:
    fields = {"protocols": (), "expires": None, "actor": "ann@host", "why": "a test", "since": 5.0} | changes
    return ApiKey(id=key_id, name=name, digest=digest_of(key), **fields)


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Rig:
    def __init__(self, *keys: ApiKey, **changes: Any) -> None:
        self.clock = ManualClock()
        self.ring = KeyRing(self.clock)
        self.accounts = Accounts(Settings(ingest_keys=True, **changes), self.clock, self.ring)
        if keys:
            self.ring.note(keys, self.clock.now())

    def client(self) -> Client:
        return self.accounts.client("192.0.2.1")

    def account(self, plain: str | None = None, authorization: str | None = None) -> str:
        return self.client().tally_of_key(plain, authorization, EVENTS).account

    def refusal(self, plain: str | None = None, authorization: str | None = None) -> KeyRefusedError:
        with pytest.raises(KeyRefusedError) as caught:
            self.account(plain, authorization)
        return caught.value


@pytest.fixture
def rig() -> Rig:
    return Rig(stored(SHOP, SHOP_ID, "shop"), stored(OTHER, OTHER_ID, "other"))


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {SHOP}",
        f"bearer  {SHOP}",
        f"Splunk {SHOP}",
        f"ApiKey {SHOP}",
        f"ApiKey {coded('any-id:' + SHOP)}",
        f"Basic {coded('tenant-7:' + SHOP)}",
        f"Basic {coded(':' + SHOP)}",
    ],
    ids=["Bearer", "bearer, two spaces", "Splunk", "ApiKey", "ApiKey, coded", "Basic, a user", "Basic, no user"],
)
def test_a_key_is_found_in_each_form(rig: Rig, authorization: str) -> None:
    assert rig.account(None, authorization) == "key:shop"
    # And in a field of its own, which counts before a field that a proxy in between may use
    assert rig.account(OTHER, authorization) == "key:other"
    assert rig.refusal("wrong", authorization).reason is KeyRefusal.UNKNOWN


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        SHOP,
        f"Digest {SHOP}",
        f"Bearer {SHOP}0",
        f"Bearer {SHOP[:-1]}",
        f"Bearer {SHOP.upper()}",
        f"Bearer {digest_of(SHOP)}",  # what is stored is no key
        f"Bearer {SHOP_ID}",
        f"Basic {coded(SHOP + ':')}",  # the user proves nothing
        f"Basic {coded(SHOP)}",
        "Basic ****",
        f"Basic {base64.b64encode(b':' + bytes([0xFF, 0xFE])).decode()}",
        f"ApiKey {coded('id:')}",
        "Bearer \udcff",  # a byte that is not UTF-8
    ],
    ids=lambda _: f"no key {next(_NUMBERS)}",  # without the key, which is another one in each process of pytest
)
def test_anything_else_is_no_key(rig: Rig, authorization: str) -> None:
    refusal = rig.refusal(None, authorization)
    assert isinstance(refusal, UnauthorizedError)
    assert refusal.reason is KeyRefusal.UNKNOWN


def test_a_request_without_a_key_is_refused_with_a_challenge(rig: Rig) -> None:
    refusal = rig.refusal()
    response = error_response(refusal)
    assert (refusal.reason, response.status) == (KeyRefusal.MISSING, 401)
    assert response.headers == {"www-authenticate": 'Bearer realm="sluice", Basic realm="sluice"'}


def test_a_key_expires_by_the_monotonic_clock() -> None:
    rig = Rig()
    # Given a clock of the control store that is an hour ahead
    time = rig.clock.now() + 3600
    rig.ring.note([stored(SHOP, SHOP_ID, "shop", expires=time + 60)], time)
    client = rig.client()
    for _ in range(2):  # found, and remembered
        assert client.tally_of_key(SHOP, None, EVENTS).account == "key:shop"
    rig.clock.advance(60)
    with pytest.raises(UnauthorizedError) as caught:
        client.tally_of_key(SHOP, None, EVENTS)
    assert caught.value.reason is KeyRefusal.EXPIRED
    assert [client.recent] == [None]  # so its next request is refused early
    assert rig.refusal(SHOP).reason is KeyRefusal.EXPIRED


def test_a_key_of_some_protocols_is_for_no_other() -> None:
    rig = Rig(stored(SHOP, SHOP_ID, "shop", protocols=("otlp", "loki")))
    client = rig.client()
    assert client.tally_of_key(SHOP, None, ProtocolName.OTLP).account == "key:shop"
    with pytest.raises(ForbiddenError) as caught:
        client.tally_of_key(SHOP, None, EVENTS)
    assert (caught.value.reason, error_response(caught.value).status) == (KeyRefusal.PROTOCOL, 403)
    assert client.tally_of_key(SHOP, None, None).account == "key:shop"  # no events


def test_a_revoked_key_is_refused_on_a_connection_that_has_used_it(rig: Rig) -> None:
    client = rig.client()
    assert [client.recent] == [None]
    shop = client.tally_of_key(None, f"Bearer {SHOP}", EVENTS)
    assert [client.recent] == [shop]
    rig.ring.note([stored(OTHER, OTHER_ID, "other")], rig.clock.now())
    assert [client.recent] == [None]
    with pytest.raises(UnauthorizedError):
        client.tally_of_key(None, f"Bearer {SHOP}", EVENTS)
    assert rig.refusal(None, f"Bearer {SHOP}").reason is KeyRefusal.UNKNOWN
    assert [client.recent] == [None]
    assert client.tally_of_key(OTHER, None, EVENTS).account == "key:other"


def test_each_request_of_a_connection_has_the_account_of_its_own_key(rig: Rig) -> None:
    client = rig.client()
    assert client.tally is None
    shop = client.tally_of_key(SHOP, None, EVENTS)
    assert client.tally_of_key(SHOP, None, EVENTS) is shop
    assert shop.connections == 1
    # A field with the same text in another form is another field
    with pytest.raises(UnauthorizedError):
        client.tally_of_key(None, SHOP, EVENTS)
    other = client.tally_of_key(None, f"Bearer {OTHER}", EVENTS)
    assert (other.account, shop.connections, other.connections) == ("key:other", 0, 1)
    with pytest.raises(UnauthorizedError):
        client.tally_of_key(None, f"Bearer {OTHER}0", EVENTS)
    assert client.tally_of_key(None, f"Bearer {SHOP}", EVENTS).account == "key:shop"
    assert client.tally_of_key(None, f"Bearer {OTHER}", EVENTS) is other
    client.close()
    assert other.connections == 0


def test_two_keys_of_one_name_are_one_account() -> None:
    rig = Rig(stored(SHOP, SHOP_ID, "shop"), stored(OTHER, OTHER_ID, "shop"))
    client = rig.client()
    tally = client.tally_of_key(SHOP, None, EVENTS)
    assert client.tally_of_key(OTHER, None, EVENTS) is tally
    assert tally.connections == 1


def test_what_is_remembered_is_bounded_and_only_of_valid_keys(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SEEN_MAX >= 1000
    monkeypatch.setattr("ingest.keys.SEEN_MAX", 3)
    for number in range(10):
        rig.account(None, f"Basic {coded(f'user-{number}:{SHOP}')}")
        rig.refusal(None, f"Bearer wrong-{number}")
    assert 0 < len(rig.ring._seen) <= 3


def test_while_the_keys_are_unknown_every_request_is_refused_for_now() -> None:
    rig = Rig()
    for fields in ((), (SHOP,), (None, f"Bearer {SHOP}")):
        refusal = rig.refusal(*fields)
        assert isinstance(refusal, KeysUnknownError)
        response = error_response(refusal)
        assert (response.status, "retry-after" in response.headers) == (503, True)
    assert [rig.ring.is_known, rig.ring.count] == [False, None]
    # No keys at all is known, too
    rig.ring.note([], 0.0)
    assert rig.refusal(SHOP).reason is KeyRefusal.UNKNOWN
    assert [rig.ring.is_known, rig.ring.count] == [True, 0]


# --- Where they come from ---------------------------------------------------------------------------------------------


class Reading:
    """A reader, its mirror and a PostgreSQL."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.mirror = MemoryKeyMirror(Settings(), MemoryServer(self.clock))
        self.in_database: Iterable[ApiKey] | None = None  # None: unavailable
        self.asked = 0
        self.taken: list[tuple[tuple[ApiKey, ...], float]] = []
        self.reader = KeyReader(self.mirror, self._load, self.clock, lambda keys, time: self.taken.append((keys, time)))

    def _load(self) -> Iterable[ApiKey]:
        self.asked += 1
        if self.in_database is None:
            raise SinkUnavailableError("PostgreSQL is away")
        return self.in_database


KEY = stored(SHOP, SHOP_ID, "shop")


def test_the_mirror_is_read_once_for_each_version() -> None:
    reading = Reading()
    assert reading.mirror.replace([KEY], "one", instead_of=None)
    for _ in range(3):
        reading.reader.note_state("one.0", 7.0)
    assert reading.taken == [((KEY,), 7.0)]
    reading.mirror.revoke([KEY.id])
    reading.reader.note_state("one.1", 8.0)
    assert reading.taken[1:] == [((), 8.0)]
    assert reading.asked == 0
    # What is known stays, after a flush and without the store
    reading.reader.note_state(None, 9.0)
    reading.reader.note_unavailable()
    assert (reading.asked, len(reading.taken)) == (0, 2)


def test_a_revoked_key_is_refused_within_two_seconds_by_design() -> None:
    # A process that hears of no control event reads the state after each wait, which Redis ends with its timer, and the
    # keys right after that (above). The test on real servers allows for a busy machine, and so for a longer wait.
    assert WAIT_SECONDS + 1 / IDLE_TIMER_HZ <= 1.5


@pytest.mark.parametrize("seconds", [-40 * 86_400.0, 40 * 86_400.0])
def test_a_process_that_starts_while_the_clock_is_wrong_has_the_right_ends_once_it_is_set(seconds: float) -> None:
    # Given a key of 30 days, and a control store whose clock is 40 days behind or ahead
    reading = Reading()
    key = stored(SHOP, SHOP_ID, "shop", expires=reading.clock.now() + 30 * 86_400)
    reading.mirror.replace([key], "one", instead_of=None)
    ring = KeyRing(reading.clock)

    def read(*, wrong_by: float = 0.0) -> None:
        count = len(reading.taken)
        reading.reader.note_state("one.0", reading.clock.now() + wrong_by)
        for keys, time in reading.taken[count:]:
            ring.note(keys, time)

    read(wrong_by=seconds)
    # When the clock is set, then the key has the rest of its 30 days
    reading.clock.advance(86_400)
    read()
    ring.check(ring.find(SHOP, None), EVENTS)
    reading.clock.advance(28.9 * 86_400)
    read()
    ring.check(ring.find(SHOP, None), EVENTS)
    reading.clock.advance(0.2 * 86_400)
    read()
    with pytest.raises(UnauthorizedError):
        ring.check(ring.find(SHOP, None), EVENTS)
    assert len(reading.taken) == 2  # read, and read again after the step; not with each state


@pytest.mark.parametrize("is_away", [True, False])
def test_a_process_that_knows_no_keys_asks_postgresql_now_and_then(is_away: bool) -> None:
    reading = Reading()

    def turn() -> None:
        if is_away:
            reading.reader.note_unavailable()
        else:
            reading.reader.note_state(None, 0.0)

    # Given neither the mirror nor PostgreSQL, then nothing is known
    for _ in range(5):
        turn()
    assert (reading.asked, reading.taken) == (1, [])
    # When PostgreSQL is back
    reading.in_database = [KEY]
    reading.clock.advance(STORED_SECONDS)
    turn()
    turn()
    assert (reading.asked, reading.taken) == (2, [((KEY,), reading.clock.now())])
    # Then the mirror counts as soon as it is known
    reading.mirror.replace([], "two", instead_of=None)
    reading.reader.note_state("two.0", 4.0)
    assert reading.taken[1:] == [((), 4.0)]


# --- Keys themselves --------------------------------------------------------------------------------------------------


def test_a_key_is_long_random_and_recognised_and_nothing_stored_leads_back_to_it() -> None:
    key, key_id = make_key()
    assert make_key()[0] != key
    assert key.startswith(f"slc_{key_id}_")
    assert len(key.removeprefix(f"slc_{key_id}_")) == 48
    assert digest_of(key) == sha256(key.encode()).hexdigest()


def test_a_key_in_a_text_is_hidden_but_for_its_id() -> None:
    assert hide_secrets(f"it sent {SHOP}, twice {SHOP}") == f"it sent slc_{SHOP_ID}_***, twice slc_{SHOP_ID}_***"
    assert hide_secrets("slc_") == "slc_"


@pytest.mark.parametrize(
    ("host", "is_public"),
    [("127.0.0.1", False), ("127.1.2.3", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True),
     ("192.0.2.1", True), ("ingest.example", True)],
)  # fmt: skip
def test_a_public_address_needs_keys_or_a_word(host: str, is_public: bool) -> None:
    with pytest.raises(SettingsError, match=f"INGEST_HOST={host} ") if is_public else contextlib.nullcontext():
        refuse_public(Settings(ingest_host=host, operator_port=8081))
    refuse_public(Settings(ingest_host=host, operator_port=8081, ingest_keys=True))
    refuse_public(Settings(ingest_host=host, operator_port=8081, ingest_open=True))


def test_the_cost_of_a_key_that_the_connection_has_sent_is_below_that_of_its_hash(rig: Rig) -> None:
    client, field = rig.client(), f"Bearer {SHOP}"
    client.tally_of_key(None, field, EVENTS)
    sent = field[:6] + field[6:]  # as a request has it: the same text, another object

    def best(work: Any) -> float:
        return min(timeit.repeat(work, number=2000, repeat=15))

    seen = best(lambda: client.tally_of_key(None, sent, EVENTS))
    hashed = best(lambda: sha256(field.encode()).hexdigest())
    assert seen < 1.5 * hashed, f"{seen / 2000 * 1e9:.0f} ns against {hashed / 2000 * 1e9:.0f} ns"
