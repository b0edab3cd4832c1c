"""What a worker's consumer spares: clients of the broker, and messages for Flower."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.worker.consumer import Consumer
from kombu.asynchronous import Hub
from kombu.transport import redis as kombu_redis

from pipeline.clock import ManualClock, SystemClock
from tasks.consumer import (
    BINDINGS_SECONDS,
    EVENTS_SECONDS,
    HEARTBEAT_SECONDS,
    QUEUE_WAIT_SECONDS,
    SluiceChannel,
    SluiceConsumer,
    SluiceQoS,
    SluiceTransport,
)


def test_a_channel_makes_one_client_for_each_pool() -> None:
    # Given a channel that is not connected
    channel: Any = object.__new__(SluiceChannel)
    channel.Client = redis.Redis
    channel._pool = redis.ConnectionPool()
    # When it needs clients, then it is the same one
    with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
        assert first is second
        assert first.connection_pool is channel._pool
    # And one of the new pool after the old one was given up
    channel._pool = redis.ConnectionPool()
    with channel.conn_or_acquire() as third:
        assert third.connection_pool is channel._pool
    # A reader that blocks has its own
    channel._async_pool = redis.ConnectionPool()
    assert channel._create_client(asynchronous=True) is not third


class FakePipeline:
    """A pipeline of redis-py that records what it would send."""

    def __init__(self, client: "FakeBroker") -> None:
        self._client = client
        self._commands: list[str] = []
        self._words: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def command(*arguments: Any, **_: Any) -> "FakePipeline":
            self._commands.append(name)
            self._words.append((name, *arguments))
            return self

        return command

    def execute(self) -> list[Any]:
        if self._client.is_lost:
            raise ConnectionResetError
        if self._client.refused in self._commands:
            raise redis.OutOfMemoryError("refused")
        self._client.trips.append(self._commands)
        self._client.words += self._words
        return [self._client.visible if name == "zrange" else 1 for name in self._commands]


class FakeBroker:
    """A client of the broker that records its round trips."""

    def __init__(self) -> None:
        self.trips: list[list[str]] = []
        self.words: list[tuple[Any, ...]] = []  # the commands of all of them, with their arguments
        self.visible: list[Any] = []  # messages that were taken long ago
        self.is_lost = False
        self.refused = ""  # a command that it refuses, and with it all of the same transaction

    def pipeline(self) -> FakePipeline:
        return FakePipeline(self)


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def qos(broker: FakeBroker) -> Iterator[Any]:
    """What a channel keeps of the messages that were taken and are not acknowledged."""
    channel = SimpleNamespace(
        conn_or_acquire=lambda _=None: nullcontext(broker), unacked_key="unacked", unacked_index_key="unacked_index",
        visibility_timeout=60, active_queues={"control"}, do_restore=True, connection_errors=(OSError,),
    )  # fmt: skip
    qos: Any = SluiceQoS(channel, 1)
    yield qos
    qos._on_collect.cancel()  # it would give back what is not acknowledged


def taken(tag: str) -> Any:
    return SimpleNamespace(delivery_info={"exchange": "control", "routing_key": "control"}, _raw={}, delivery_tag=tag)


_ADDED, _REMOVED = ["zadd", "hset"], ["zrem", "hdel"]


def test_an_acknowledgement_is_sent_with_the_next_message(qos: Any, broker: FakeBroker) -> None:
    # Given a message that was acknowledged: it takes no place of the pool
    qos.append(taken("a"), "a")
    qos.ack("a")
    assert broker.trips == [_ADDED]
    assert qos.can_consume()
    # When the next one is taken, then both are told in one round trip
    qos.append(taken("b"), "b")
    assert broker.trips == [_ADDED, [*_REMOVED, *_ADDED]]
    # And the acknowledgement is sent once
    qos.append(taken("c"), "c")
    assert broker.trips[-1] == _ADDED


def test_all_acknowledgements_that_wait_are_sent_together(qos: Any, broker: FakeBroker) -> None:
    # Given a pool of several processes, and acknowledgements of some of their messages
    for tag in ("a", "b", "c"):
        qos.append(taken(tag), tag)
    for tag in ("a", "c"):
        qos.ack(tag)
    broker.words.clear()
    # When the next message is taken, then each is removed from both keys, and only they
    qos.append(taken("d"), "d")
    assert broker.words[:2] == [("zrem", "unacked_index", "a", "c"), ("hdel", "unacked", "a", "c")]
    # And a pipeline of somebody else, which may end without a look at its answers, takes none along
    qos.ack("b")
    others = broker.pipeline()
    with qos.pipe_or_acquire(others) as pipe:
        assert pipe is others
    assert others._commands == []
    qos.send_acks()
    assert broker.words[-2:] == [("zrem", "unacked_index", "b"), ("hdel", "unacked", "b")]


def test_the_search_for_messages_of_others_is_one_round_trip_while_there_are_none(
    qos: Any, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[tuple[int, Any]] = []
    monkeypatch.setattr(kombu_redis.QoS, "restore_visible", lambda _, **how: locked.append((len(broker.trips), how)))
    # Given an acknowledgement that waits
    qos.append(taken("a"), "a")
    qos.ack("a")
    # When the search comes, then it brings that along, and takes no lock
    qos.restore_visible(num=None, interval=1)
    qos.restore_visible(num=None, interval=1)
    assert broker.trips[1:] == [[*_REMOVED, "zrange"], ["zrange"]]
    assert locked == []
    # And it asks for those that were taken longer ago than the visibility time-out
    [*_, (_, key, taken_before, taken_after)] = broker.words
    assert (key, taken_after) == ("unacked_index", 0)
    assert taken_before <= SystemClock().now() - qos.channel.visibility_timeout
    # But it takes the lock if a worker was killed that had taken a message
    broker.visible = [("x", 1.0)]
    qos.restore_visible(num=None, interval=1)
    assert locked == [(4, {"start": 0, "num": None, "interval": 1})]


@pytest.mark.parametrize("change", ["few_seconds", "no_queue"])
def test_an_acknowledgement_does_not_wait_where_nothing_would_bring_it_along(
    qos: Any, broker: FakeBroker, change: str
) -> None:
    # Given a visibility time-out that is hardly longer than the wait, or a worker whose queue is paused
    if change == "few_seconds":
        qos.channel.visibility_timeout = 5
    else:
        qos.channel.active_queues = set()
    qos.append(taken("a"), "a")
    qos.ack("a")
    assert broker.trips == [_ADDED, _REMOVED]
    assert qos.can_consume()


def test_acknowledgements_that_wait_are_sent_before_the_channel_closes(qos: Any, broker: FakeBroker) -> None:
    qos.append(taken("a"), "a")
    qos.ack("a")
    qos.restore_unacked_once()
    assert broker.trips[1:] == [_REMOVED]


def test_a_lost_broker_takes_acknowledgements_along(qos: Any, broker: FakeBroker) -> None:
    qos.append(taken("a"), "a")
    qos.ack("a")
    broker.is_lost = True
    qos.restore_unacked_once()  # the message comes again
    assert broker.trips == [_ADDED]


def test_a_broker_without_memory_takes_no_message_but_the_acknowledgements_that_wait(
    qos: Any, broker: FakeBroker
) -> None:
    qos.append(taken("a"), "a")
    qos.ack("a")
    broker.refused = "zadd"
    with pytest.raises(redis.ResponseError):
        qos.append(taken("b"), "b")
    assert broker.trips == [_ADDED]
    qos.send_acks()
    qos.send_acks()
    assert broker.trips == [_ADDED, _REMOVED]


def test_a_queue_is_cancelled_although_the_broker_refuses_the_acknowledgements(
    qos: Any, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise the consumer would count as cancelled and go on to take messages: kombu forgets its tag before
    qos.append(taken("a"), "a")
    qos.ack("a")
    broker.refused = "zrem"
    cancelled: list[str] = []
    monkeypatch.setattr(kombu_redis.Channel, "_basic_cancel", lambda _, tag: cancelled.append(tag))
    channel: Any = object.__new__(SluiceChannel)
    channel._qos = qos
    channel._basic_cancel("tag")
    assert cancelled == ["tag"]


@pytest.fixture
def consumer() -> Any:
    """A consumer with an event loop, whose events are counted when they are sent."""
    consumer: Any = object.__new__(SluiceConsumer)
    consumer.sent = []
    consumer.hub, consumer._clock = Hub(), ManualClock()
    consumer.event_dispatcher = SimpleNamespace(flush=lambda: consumer.sent.append(consumer._clock.monotonic()))
    return consumer


def timers(consumer: Any) -> list[Any]:
    """The timers that are set."""
    return [scheduled.entry for scheduled in consumer.hub.timer.queue]


def test_a_connection_wakes_the_event_loop_by_few_timers() -> None:
    # Given a transport whose connection is registered with an event loop, and registered again after it was lost
    hub, options = Hub(), {"health_check_interval": 10, "unacked_restore_interval": 5}
    client: Any = SimpleNamespace(transport_options=options, hostname="redis://nowhere")
    transport: Any = SluiceTransport(client)
    began = SystemClock().monotonic()
    for _ in range(2):
        transport.register_with_event_loop(SimpleNamespace(client=client), hub)
    ended = SystemClock().monotonic()
    # Then no timer comes more often than the two that were asked for
    waits = sorted(one.eta - began for one in hub.timer.queue if not one.entry.canceled)
    assert min(waits) > 4
    # And that of the bindings is there once
    refresh = [one for one in hub.timer.queue if one.entry is transport.cycle._binding_expiry_tref]
    [due] = [one.eta - BINDINGS_SECONDS for one in refresh]
    assert began <= due <= ended


@pytest.mark.parametrize(
    ("queues", "seconds"), [(["batches"], QUEUE_WAIT_SECONDS), (["control"], QUEUE_WAIT_SECONDS),
                            (["batches", "control"], SluiceTransport.brpop_timeout)],
)  # fmt: skip
def test_a_worker_of_one_queue_lets_the_broker_wait_for_longer(
    monkeypatch: pytest.MonkeyPatch, queues: list[str], seconds: float
) -> None:
    # Given a worker of one queue, or of both, and of which a pause has cancelled one since
    consume_from = dict.fromkeys(queues)

    def init(self: Any, **_: Any) -> None:
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=consume_from)))

    monkeypatch.setattr(Consumer, "__init__", init)
    monkeypatch.setattr(Consumer, "ensure_connected", lambda _, conn: conn)
    consumer: Any = SluiceConsumer()
    consume_from.pop("batches", None)
    # When it connects, again, and the connection makes its first channel
    made = SimpleNamespace(brpop_timeout=SluiceTransport.brpop_timeout)
    transport = SimpleNamespace(brpop_timeout=SluiceTransport.brpop_timeout, channels=[made])
    consumer.ensure_connected(SimpleNamespace(transport=transport, ensure_connection=print))
    # Then only the worker of both looks soon for what a resumption adds
    assert (transport.brpop_timeout, made.brpop_timeout) == (seconds, seconds)


def test_heartbeats_are_rare_unless_others_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    app = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from={})))
    monkeypatch.setattr(SluiceConsumer, "app", app, raising=False)
    monkeypatch.setattr(Consumer, "__init__", lambda *_, worker_options, **__: found.append(worker_options))
    for options in ({"concurrency": 2, "heartbeat_interval": None}, {"heartbeat_interval": 1}, None):
        SluiceConsumer(worker_options=options)
    assert found == [
        {"concurrency": 2, "heartbeat_interval": HEARTBEAT_SECONDS},
        {"heartbeat_interval": 1},
        {"heartbeat_interval": HEARTBEAT_SECONDS},
    ]


def test_the_events_of_tasks_are_sent_together(consumer: Any) -> None:
    # When events come one after the other, then one timer is set for all
    for _ in range(3):
        consumer.on_send_event_buffered()
    [timer] = timers(consumer)
    assert consumer.sent == []
    timer()
    assert len(consumer.sent) == 1
    # And the next one sets a timer again
    consumer.hub.timer.clear()
    consumer.on_send_event_buffered()
    assert len(timers(consumer)) == 1


def test_a_timer_that_a_lost_connection_took_along_is_set_again(consumer: Any) -> None:
    consumer.on_send_event_buffered()
    consumer.hub.timer.clear()
    consumer._clock.advance(EVENTS_SECONDS)
    consumer.on_send_event_buffered()
    assert len(timers(consumer)) == 1


def test_events_that_wait_are_sent_before_the_worker_stops(consumer: Any) -> None:
    consumer.connection_errors, consumer.channel_errors = (OSError,), ()
    stopped: list[int] = []
    consumer.blueprint = SimpleNamespace(stop=lambda _: stopped.append(len(consumer.sent)))
    consumer.on_send_event_buffered()
    consumer.stop()
    assert stopped == [1]
