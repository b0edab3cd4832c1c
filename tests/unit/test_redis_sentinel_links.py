"""Sentinel: its URLs, the master that a connection finds, and what is said if there is none."""

from dataclasses import replace
from typing import Any, cast

import pytest
from kombu import Connection
from kombu.utils.json import dumps
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, SentinelManagedConnection, SentinelManagedSSLConnection

from pipeline.control_store.connection import ControlConnection
from pipeline.control_store.rights_check import database_of
from pipeline.errors import SettingsError, StoreUnavailableError
from pipeline.log.redis_connection import Wire
from pipeline.redis_link import broker_options, make_pool
from pipeline.redis_sentinel import Sentinels
from pipeline.settings import Settings
from pipeline.urls import SentinelUrl, sentinel_url
from tasks.app import celery_settings
from tasks.consumer import use_transport

URL = "redis+sentinel://ann:p%40%3B%2Fx@one:1,[::1]:2,two/main.log-1/3"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        (URL, SentinelUrl((("one", 1), ("::1", 2), ("two", 26379)), "main.log-1", 3, "ann", "p@;/x")),
        ("rediss+sentinel://:p@one/main", SentinelUrl((("one", 26379),), "main", 0, None, "p")),
        ("redis+sentinel://one/main/", SentinelUrl((("one", 26379),), "main", 0, None, None)),
        ("redis://one:1/0", None),
        ("kafka://one:1", None),
    ],
)
def test_a_url_of_sentinels_has_all_parts(url: str, parts: SentinelUrl | None) -> None:
    assert sentinel_url(url) == parts
    if parts is not None:
        assert database_of(url) == parts.database
        assert "password" not in repr(parts)


@pytest.mark.parametrize(
    "place",
    ["one:1", "one:1/", "one:1/0/main", "one:1,/main", "one:1/main/0?db=1", "one:1/main/0/1", "/main"],
)
@pytest.mark.parametrize("name", ["REDIS_URL", "EVENT_LOG_URL"])
def test_a_url_without_a_part_is_refused_without_its_password(name: str, place: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is not of the form redis\+sentinel://") as error:
        Settings.from_environ({name: f"redis+sentinel://u:hunter2@{place}"})
    assert "hunter2" not in str(error.value)


def test_several_servers_without_sentinel_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"REDIS_URL names several servers, .* redis\+sentinel://"):
        Settings(redis_url="redis://one:1,two:2/0")


def test_a_password_of_sentinels_needs_sentinels() -> None:
    with pytest.raises(SettingsError, match="REDIS_SENTINEL_PASSWORD is set, and neither REDIS_URL nor EVENT_LOG_URL"):
        Settings(redis_sentinel_password="x")
    with pytest.raises(SettingsError, match="REDIS_SENTINEL_USER needs REDIS_SENTINEL_PASSWORD"):
        Settings(redis_url=URL, redis_sentinel_user="x")
    assert "hunter2" not in repr(Settings(redis_url=URL, redis_sentinel_password="hunter2"))


def test_a_log_behind_sentinels_is_one_on_redis() -> None:
    assert Settings(event_log_url=URL).log_scheme == "redis"
    assert Settings(event_log_url=URL.replace("redis+", "rediss+")).log_scheme == "redis"


def test_connections_get_the_login_of_redis_and_sentinels_their_own() -> None:
    settings = Settings(redis_url=URL, redis_sentinel_user="watch", redis_sentinel_password="s")
    pool: Any = make_pool(settings, "redis_url", protocol=2)
    assert pool.service_name == "main.log-1"
    assert issubclass(pool.connection_class, SentinelManagedConnection)
    assert {name: pool.connection_kwargs[name] for name in ("username", "password", "db")} == {
        "username": "ann",
        "password": "p@;/x",
        "db": 3,
    }
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"], one["credential_provider"].get_credentials()) for one in asked] == [
        ("one", 1, ("watch", "s")),
        ("::1", 2, ("watch", "s")),
        ("two", 26379, ("watch", "s")),
    ]


def test_tls_is_that_of_both_and_verified() -> None:
    url = URL.replace("redis+", "rediss+")
    pool: Any = make_pool(Settings(redis_url=url), "redis_url")
    assert issubclass(pool.connection_class, SentinelManagedSSLConnection)
    for one in (pool, *(sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels)):
        assert one.connection_kwargs["ssl_cert_reqs"] == "required"
        assert one.connection_kwargs["ssl_check_hostname"] is True


class FakeParser:
    """The end of a connection at which answers arrive."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.is_connected = True

    def read_response(self, **_: Any) -> Any:
        raise self.error

    def on_disconnect(self) -> None:
        self.is_connected = False


@pytest.mark.parametrize("url", [URL, URL.replace("redis+", "rediss+")])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ReadOnlyError("You can't write against a read only replica."), ReadOnlyError),
        (TimeoutError(), RedisTimeoutError),
        (ConnectionResetError(), RedisConnectionError),
    ],
)
def test_what_a_former_master_answers_is_known_and_its_connection_closed(
    url: str, error: Exception, raised: type[Exception]
) -> None:
    # Given a connection to a master that has become a replica, or answers late
    connection: Any = make_pool(
        Settings(event_log_url=url), "event_log_url", retry=Retry(NoBackoff(), 0)
    ).make_connection()
    connection._parser = FakeParser(error)
    # Then nothing was written if it says so; and what arrives late is not taken for the next answer
    with pytest.raises(raised) as seen:
        Wire(connection, 1.0).receive()
    assert type(seen.value) is raised
    assert not connection._parser.is_connected


def test_celery_gets_all_sentinels_and_shows_no_password() -> None:
    settings = Settings(redis_url=URL, redis_sentinel_password="hunter2")
    use_transport()
    options = celery_settings(settings)["broker_transport_options"]
    connection = Connection(broker_options(settings)[0], transport_options=options)
    shown = connection.info()
    del shown["password"]  # as Celery does in `inspect stats`
    written = f"{connection.as_uri()} {dumps(shown)} {shown!r}"
    assert "p@;/x" not in written
    assert "p%40" not in written
    assert "hunter2" not in written
    assert (connection.userid, connection.password, connection.virtual_host) == ("ann", "p@;/x", "3")
    assert options["sentinels"] == [["one", 1], ["::1", 2], ["two", 26379]]
    # And a broker without Sentinel has no such options
    assert "sentinels" not in celery_settings(Settings())["broker_transport_options"]


class FakeSentinel:
    """What a sentinel answers."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls = 0

    def sentinel_master(self, name: str) -> Any:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def state(port: int, *, down: bool = False) -> dict[str, Any]:
    return {
        "ip": "10.0.0.1", "port": port, "is_master": True, "is_sdown": down, "is_odown": False, "num-other-sentinels": 2
    }  # fmt: skip


def sentinels(*answers: Any) -> tuple[Sentinels, list[FakeSentinel]]:
    made, each = (
        Sentinels([("s", number) for number in range(len(answers))], {}),
        [FakeSentinel(one) for one in answers],
    )
    made.sentinels = cast("Any", each)
    return made, each


def test_the_first_sentinel_that_holds_its_master_for_available_is_believed_and_asked_first_from_then_on() -> None:
    asked, each = sentinels(RedisConnectionError("gone"), state(1, down=True), state(2))
    assert asked.discover_master("main") == ("10.0.0.1", 2)
    assert asked.discover_master("main") == ("10.0.0.1", 2)
    assert [one.calls for one in each] == [1, 1, 2]
    # And if that one is gone, the others are asked again
    each[2].answer, each[0].answer = RedisConnectionError("gone"), state(3)
    assert asked.discover_master("main") == ("10.0.0.1", 3)


def test_without_a_master_each_sentinel_is_named_with_its_reason() -> None:
    asked, _ = sentinels(
        RedisConnectionError("refused"),
        AuthenticationError("WRONGPASS"),
        NoPermissionError("no"),
        ResponseError("No such master with that name"),
        ResponseError("unknown command 'SENTINEL'"),
        state(1, down=True),
    )
    with pytest.raises(MasterNotFoundError) as error:
        asked.discover_master("main")
    assert str(error.value) == (
        "no sentinel names a master 'main' that is available: s:0 does not answer (refused); "
        "s:1 refuses REDIS_SENTINEL_USER or REDIS_SENTINEL_PASSWORD (WRONGPASS); "
        "s:2 refuses the question: its user needs the right +sentinel|master (no); "
        "s:3 has no master with the name 'main'; s:4 is no sentinel; "
        "s:5 holds the master for unavailable, and no replica has taken its place yet"
    )


def test_an_unavailable_store_names_its_sentinels() -> None:
    settings = replace(Settings(), redis_url="redis+sentinel://u:hunter2@127.0.0.1:1,127.0.0.1:2/main")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1 does not answer.*127\.0\.0\.1:2 does") as error:
        ControlConnection(settings).call("PING")
    assert "hunter2" not in str(error.value)
