"""Acknowledgements that wait while the broker refuses writes, on a real Redis."""

from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis

from stack.servers import Server
from tasks.consumer import use_transport


@pytest.fixture
def client(own_control_redis: Server) -> Iterator[Any]:
    with redis.Redis.from_url(own_control_redis.url, decode_responses=True) as made:
        yield made


@pytest.fixture
def taken() -> list[int]:
    return []


@pytest.fixture
def consumer(own_control_redis: Server, taken: list[int]) -> Iterator[Any]:
    """A consumer that has taken a message; its acknowledgement waits."""
    use_transport()

    def take(body: Any, message: Any) -> None:
        taken.append(body["n"])
        message.ack()

    with kombu.Connection(own_control_redis.url) as connection:
        consumer = kombu.Consumer(connection.channel(), [kombu.Queue("q")], callbacks=[take], accept=["json"])
        consumer.consume()
        send(consumer, 1)
        yield consumer


def send(consumer: Any, number: int) -> None:
    """Send a message and take it."""
    connection = consumer.connection
    connection.Producer().publish({"n": number}, routing_key="q", serializer="json")
    connection.drain_events(timeout=10)


def test_a_queue_is_cancelled_although_the_broker_is_read_only(consumer: Any, client: Any) -> None:
    assert client.hlen("unacked") == 1
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    consumer.cancel()
    assert not consumer.channel.active_queues
    client.execute_command("REPLICAOF", "NO", "ONE")


def test_a_broker_without_memory_forgets_no_acknowledgement(consumer: Any, client: Any, taken: list[int]) -> None:
    # Given a message in a queue of a broker without memory
    consumer.connection.Producer().publish({"n": 2}, routing_key="q", serializer="json")
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        consumer.connection.drain_events(timeout=10)
    assert taken == [1]
    # Then the acknowledgement of the one before is sent all the same
    consumer.cancel()
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0
