"""Whatever other programs write into the keys and channels of the queues, a worker's consumer goes on."""

import contextlib
import uuid
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from kombu.serialization import registry  # type: ignore[attr-defined]  # its types lack this name

from checks.testbed.waiting import eventually
from pipeline.names import DropReason, Queue
from pipeline.settings import Settings
from pipeline.wiring import make_queues
from stack.servers import Server
from tasks import consumer as consumer_module
from tasks import signing
from tasks.app import make_app
from tasks.consumer import use_transport
from tasks.hints import hinted, is_hinted, send_hint


class Consumer:
    """A consumer of one queue over Sluice's transport, and of a fan-out as remote commands use it."""

    def __init__(self, connection: kombu.Connection, exchange: kombu.Exchange) -> None:
        self._connection = connection
        self.got: list[Any] = []
        channel = connection.channel()
        queue = kombu.Queue(Queue.BATCHES.value, exchange, routing_key="batches")
        consumer = kombu.Consumer(channel, [queue], callbacks=[self._take], accept=["json"])
        consumer.consume()
        self._producer = kombu.Producer(connection.channel(), exchange, routing_key="batches")
        self.topic = f"/0.{exchange.name}/batches"  # kombu's name of the channel, in database 0

    def _take(self, body: Any, message: Any) -> None:
        self.got.append(body)
        message.ack()

    def send(self, body: Any) -> None:
        self._producer.publish({"n": body})

    def has_got(self, body: Any) -> bool:
        with contextlib.suppress(TimeoutError):
            self._connection.drain_events(timeout=0.1)
        return {"n": body} in self.got

    def has_got_what_it_sends(self, body: Any) -> bool:
        self.send(body)
        return self.has_got(body)


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex}:"


@pytest.fixture
def connection(control_redis: Server, prefix: str) -> Iterator[kombu.Connection]:
    use_transport()
    with kombu.Connection(control_redis.url, transport_options={"global_keyprefix": prefix}) as made:
        yield made


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DropReason, str]]:
    noted: list[tuple[DropReason, str]] = []
    monkeypatch.setattr(consumer_module, "note_dropped", lambda reason, what: noted.append((reason, what)))
    return noted


@pytest.mark.parametrize("kind", ["string", "hash", "stream"])
def test_a_queue_whose_key_is_no_list_is_made_anew(
    control_redis: Server, connection: kombu.Connection, prefix: str, dropped: list[tuple[DropReason, str]], kind: str
) -> None:
    consumer = Consumer(connection, kombu.Exchange("batches", "direct"))
    consumer.send("first")
    eventually(lambda: consumer.has_got("first"), "the first message comes")
    # When another program writes something else under the queue's name
    with redis.Redis.from_url(control_redis.url) as client:
        key = f"{prefix}batches"
        make = {"string": lambda: client.set(key, "x"), "hash": lambda: client.hset(key, "x", "y")}
        make.get(kind, lambda: client.xadd(key, {"x": "y"}))()
        # Then it is dropped, once, and said
        eventually(lambda: consumer.has_got("nothing") or bool(dropped), "it is dropped")
        assert [reason for reason, _ in dropped] == [DropReason.MALFORMED]
        assert "batches" in dropped[0][1]
        assert "no list" in dropped[0][1]
    # And messages come as before
    consumer.send("second")
    eventually(lambda: consumer.has_got("second"), "the second message comes")


def test_what_is_no_remote_command_is_dropped(
    control_redis: Server, connection: kombu.Connection, prefix: str, dropped: list[tuple[DropReason, str]]
) -> None:
    consumer = Consumer(connection, kombu.Exchange(f"pidbox-{prefix[:-1]}", "fanout"))
    # A channel keeps nothing: what is sent before the subscription is lost
    eventually(lambda: consumer.has_got_what_it_sends("first"), "the first command comes")
    # When another program publishes in its channel what is none
    contents = [b"no JSON", b"[]", b"null", b'"text"', b"7", b"{}", b"\xff\xfe", b'{"headers": {}, "properties": {}}']
    with redis.Redis.from_url(control_redis.url) as client:
        for content in contents:
            assert client.publish(f"{prefix}{consumer.topic}", content) == 1
    # Then commands come as before
    consumer.send("second")
    eventually(lambda: consumer.has_got("second"), "the second command comes")
    assert {one["n"] for one in consumer.got} == {"first", "second"}
    # And each was counted
    assert [reason for reason, _ in dropped] == [DropReason.MALFORMED] * len(contents)


@pytest.fixture
def own_serializers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kombu's serializers are those of this process: signed messages disable all others."""
    for name in ("_decoders", "_encoders", "_disabled_content_types", "name_to_type", "type_to_name"):
        monkeypatch.setattr(registry, name, copy(getattr(registry, name)))


@pytest.mark.usefixtures("own_serializers")
@pytest.mark.parametrize("is_signed", [False, True])
def test_the_hints_that_wait_are_known_by_their_partitions(
    control_redis: Server, prefix: str, tmp_path: Path, is_signed: bool
) -> None:
    settings = replace(Settings(), redis_url=control_redis.url, key_prefix=prefix)
    if is_signed:
        key, certificate = signing.create("beat", tmp_path)
        settings = replace(
            settings,
            signing_key_file=str(key),
            signing_cert_file=str(certificate),
            signing_cert_folder=str(certificate.parent),
        )
    app, queues = make_app(settings), make_queues(settings)
    # Given hints that no worker takes, and what other programs have written
    for partition in (3, 12, 3):
        send_hint(app, partition, hint="token")
    with redis.Redis.from_url(control_redis.url) as client:
        client.lpush(f"{prefix}batches", "7", "no JSON", b"{}")
    # Then their shares are known
    assert queues.waiting(Queue.BATCHES) == len(queues.messages(Queue.BATCHES, 32)) == 6
    assert hinted(queues.messages(Queue.BATCHES, 32)) == {3, 12}
    assert is_hinted(queues, 4, drains_max=8)
    assert not is_hinted(queues, 5, drains_max=8)
    # And the newest come first
    assert hinted(queues.messages(Queue.BATCHES, 4)) == {3}
    app.close()
