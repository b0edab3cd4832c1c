"""How a worker's channel waits for messages, and how it stops waiting, on a real Redis."""

import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis

from checks.testbed.waiting import WAIT_SECONDS_MAX, eventually
from pipeline.settings import Settings
from stack.servers import Server
from tasks.app import make_app
from tasks.consumer import QUEUE_WAIT_SECONDS, SluiceConsumer, SluiceTransport, use_transport

LONG_SECONDS = 10 * WAIT_SECONDS_MAX  # a wait that no test waits for


@pytest.fixture
def name() -> str:
    return f"queue-{uuid.uuid4().hex}"


@pytest.fixture
def connection(own_control_redis: Server) -> Iterator[kombu.Connection]:
    """A connection whose reads of queues wait for long, to a server on which nobody else waits."""
    use_transport()
    with kombu.Connection(own_control_redis.url) as made:
        assert isinstance(made.transport, SluiceTransport)
        made.transport.brpop_timeout = int(LONG_SECONDS)
        yield made


def consume(connection: kombu.Connection, name: str) -> tuple[Any, list[Any]]:
    """A channel whose read of the queue waits on the server, and what it has taken."""
    channel, taken = connection.channel(), list[Any]()
    consumer = kombu.Consumer(channel, [kombu.Queue(name)], callbacks=[lambda body, message: taken.append(message)])
    consumer.consume()
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.1)  # sends the read
    return channel, taken


def blocked(client: Any) -> int:
    return int(client.info("clients")["blocked_clients"])


def test_a_channel_that_closes_does_not_wait_for_messages(
    connection: kombu.Connection, name: str, own_control_redis: Server
) -> None:
    with redis.Redis.from_url(own_control_redis.url) as client:
        before = blocked(client)
        channel, _ = consume(connection, name)
        eventually(lambda: blocked(client) == before + 1, "the read waits")
        started = time.monotonic()
        channel.close()
        assert time.monotonic() - started < LONG_SECONDS
        # And its read takes no message of others
        eventually(lambda: blocked(client) == before, "the server has seen its end")
        client.lpush(name, b"a message")
        assert client.llen(name) == 1


def test_a_message_ends_the_wait_at_once(connection: kombu.Connection, name: str) -> None:
    _, taken = consume(connection, name)
    with connection.clone() as other:
        other.SimpleQueue(name).put("one")
    connection.drain_events(timeout=WAIT_SECONDS_MAX)  # raises if the message does not end the wait
    assert [message.payload for message in taken] == ["one"]
    taken[0].ack()


def test_a_message_that_came_before_the_close_goes_back_into_the_queue(
    connection: kombu.Connection, name: str, own_control_redis: Server
) -> None:
    # Given a read whose answer waits in the socket
    channel, taken = consume(connection, name)
    reading = channel._in_poll
    with connection.clone() as other:
        other.SimpleQueue(name).put("one")
    eventually(lambda: bool(reading.can_read(timeout=0)), "it has come")
    # When the channel closes, then the message is not lost
    channel.close()
    with redis.Redis.from_url(own_control_redis.url) as client:
        assert client.llen(name) == 1
    assert [message.payload for message in taken] == ["one"]


def test_every_channel_of_a_worker_of_one_queue_waits_for_long(control_redis: Server) -> None:
    # Given a worker that has just connected, which makes a channel: its consumer gets that one
    consumer: Any = object.__new__(SluiceConsumer)
    consumer.app = make_app(Settings(redis_url=control_redis.url))
    consumer._takes_one_queue = consumer.first_connection_attempt = True
    with consumer.ensure_connected(consumer.app.connection_for_read()) as connection:
        # Then that channel waits as long as those that are made later
        waits = [connection.channel().brpop_timeout for _ in range(2)]
    assert waits == [QUEUE_WAIT_SECONDS, QUEUE_WAIT_SECONDS]
