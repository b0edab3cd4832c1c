"""What a channel sends to a real Redis about the messages that it has taken, also while Redis refuses writes."""

from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis

from checks.testbed.waiting import WAIT_SECONDS_MAX
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
    connection.drain_events(timeout=WAIT_SECONDS_MAX)


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
        consumer.connection.drain_events(timeout=WAIT_SECONDS_MAX)
    assert taken == [1]
    # Then the acknowledgement of the one before is sent all the same
    consumer.cancel()
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0


def test_what_a_killed_worker_took_comes_again_after_the_time_out_and_not_before(consumer: Any, client: Any) -> None:
    # Given a message that a worker took and never acknowledged, beside the acknowledgement of another one that waits
    [acked] = client.zrange("unacked_index", 0, -1)
    consumer.callbacks[:] = [lambda _body, _message: None]
    send(consumer, 2)
    [(tag, taken_at)] = client.zrange("unacked_index", 0, -1, withscores=True)
    assert tag != acked
    qos = consumer.channel.qos
    # When others look for such messages before the time-out has passed, then they find none
    seconds = qos.visibility_timeout
    for age in (0.0, seconds - 60.0):
        client.zadd("unacked_index", {tag: taken_at - age})
        qos.restore_visible(num=10, interval=1)
        assert (client.llen("q"), client.hlen("unacked")) == (0, 1)
    # But afterwards it is in its queue again, and only once
    client.zadd("unacked_index", {tag: taken_at - seconds - 1.0})
    for _ in range(2):
        qos.restore_visible(num=10, interval=1)
        assert (client.llen("q"), client.hlen("unacked"), client.zcard("unacked_index")) == (1, 0, 0)
