"""What a worker's consumer spares: clients of the broker, and messages for Flower."""

from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.worker.consumer import Consumer
from kombu.asynchronous import Hub

from pipeline.clock import ManualClock, SystemClock
from tasks.consumer import (
    BINDINGS_SECONDS,
    EVENTS_SECONDS,
    HEARTBEAT_SECONDS,
    QUEUE_WAIT_SECONDS,
    SluiceChannel,
    SluiceConsumer,
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
    # When it connects, again
    transport = SimpleNamespace(brpop_timeout=SluiceTransport.brpop_timeout)
    consumer.ensure_connected(SimpleNamespace(transport=transport, ensure_connection=print))
    # Then only the worker of both looks soon for what a resumption adds
    assert transport.brpop_timeout == seconds


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
