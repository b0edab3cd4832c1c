"""The worker's consumer: it continues whatever messages the queue holds, and reports the messages that it drops."""

import contextlib
import inspect
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty
from typing import Any, Final

from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from pipeline.clock import Clock, SystemClock
from pipeline.names import DropReason, Queue
from pipeline.redis_sentinel import sentinel_pool
from tasks.dropped import WHAT_CHARS_MAX, note_dropped
from tasks.signing import reason_of, settings_of

_logger = logging.getLogger(__name__)

# Between two attempts to connect to a broker that is unavailable. Celery's own waits grow to 30 s, and hints would wait
# for that long after the broker is back.
_CONNECT_WAITS: Final = {"interval_start": 1, "interval_step": 1, "interval_max": 5}
# The events of tasks, for Flower, wait this long for others: each message costs more than the events in it.
EVENTS_SECONDS: Final = 0.5
# Between two heartbeats of a worker, for Flower; Celery's default is 2. Flower shows a worker as offline after two of
# them. Sluice itself does not use them.
HEARTBEAT_SECONDS: Final = 5.0
# How long a worker of one queue lets Redis wait for its messages; kombu's default is 1. Each end of the wait wakes the
# worker's event loop. A worker of both queues must look anew soon after a pause: its wait may be for one queue only.
QUEUE_WAIT_SECONDS: Final = 5
# Kombu looks each second whether bindings of its queues for replies expire, which is after an hour.
BINDINGS_SECONDS: Final = 30.0
# With a shorter visibility time-out than this, an acknowledgement is sent at once. Otherwise it may wait for kombu's
# next look for messages of killed workers, which comes every 5 s (`unacked_restore_interval`).
ACK_TIMEOUT_SECONDS_MIN: Final = 15.0
OURS: Final = "sluice."  # prefix of our tasks' names


def _is_of_the_broker(error: Exception, lists: Any) -> bool:
    """Whether the broker failed, not the message, according to the error lists of a transport or consumer.

    Kombu also lists KeyError as a connection error. A message with a missing part raises it.
    """
    return isinstance(error, (*lists.connection_errors, *lists.channel_errors)) and not isinstance(error, KeyError)


def _is_wrong_type(error: Exception) -> bool:
    """Whether Redis refuses a command because the key holds another type."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


_taken: Final[defaultdict[str, int]] = defaultdict(int)


def messages_taken(queue: Queue) -> int:
    """Messages that this process has taken from a queue, both valid and invalid."""
    return _taken[queue.value]


class SluiceMessage(virtual.Message):
    """A message whose content type its consumer must accept.

    Kombu itself trusts two content types everywhere, and returns a body that is empty or no text as it is: so a message
    without a signature would pass where only signed ones are accepted.
    """

    def _decode(self) -> Any:
        content_type = self.content_type or "application/data"  # as kombu does
        if self.accept is not None and content_type not in self.accept:
            raise ContentDisallowed(f"content of type {str(content_type)[:WHAT_CHARS_MAX]!r} is not accepted")
        if not self.body or not isinstance(self.body, str | bytes):
            raise DecodeError("its body is empty, or is no text")
        return super()._decode()


class SluiceQoS(kombu_redis.QoS):
    """What a channel knows of the messages that it has taken, with fewer round trips than kombu's.

    An acknowledgement waits for the next command about such messages, which comes in a few seconds. If the worker is
    killed meanwhile, the message comes again after the visibility time-out, although its task has begun. Each task of
    Sluice may be repeated: it is a hint or a tick.
    """

    channel: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        self._acked: list[str] = []  # tags of acknowledgements that wait; the first one is the oldest
        super().__init__(*args, **options)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, at once in this process; the broker learns of it with the next command."""
        self._acked.append(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        is_short = self.visibility_timeout < ACK_TIMEOUT_SECONDS_MIN
        if is_short or not self.channel.active_queues:  # a paused worker looks for no messages
            self.send_acks()

    def send_acks(self) -> None:
        """Send the acknowledgements that wait. If the broker is lost or refuses, the messages come again."""
        if self._acked:
            errors = (*self.channel.connection_errors, ResponseError)
            with contextlib.suppress(*errors), self.pipe_or_acquire() as pipe:
                pipe.execute()

    @contextlib.contextmanager
    def pipe_or_acquire(self, pipe: Any = None, client: Any = None) -> Iterator[Any]:
        """A pipeline; a new one begins with the acknowledgements that wait. Each of its users executes it.

        A broker without memory refuses a message, and with it all of the pipeline: then they wait for the next one.
        """
        with super().pipe_or_acquire(pipe, client) as found:
            acked: list[str] = []
            if pipe is None and self._acked:
                acked, self._acked = self._acked, []
                found.zrem(self.unacked_index_key, *acked).hdel(self.unacked_key, *acked)
            try:
                yield found
            except OutOfMemoryError:
                self._acked = acked + self._acked
                raise

    def restore_visible(self, start: int = 0, num: Any = 10, interval: int = 10) -> None:
        """Give back messages that another worker took long ago, if there are any.

        Kombu takes a lock for each look. It is taken here only if a look without it has found one.
        """
        with self.pipe_or_acquire() as pipe:
            ceiling = SystemClock().now() - self.visibility_timeout
            pipe.zrange(self.unacked_index_key, ceiling, 0, desc=True, byscore=True, offset=0, num=1)
            *_, found = pipe.execute()
        if found:
            super().restore_visible(start=start, num=num, interval=interval)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back what was not acknowledged, when the channel closes; the others are acknowledged before."""
        self.send_acks()
        super().restore_unacked_once(stderr)


class SluiceChannel(kombu_redis.Channel):
    """Kombu's channel, with the messages above.

    It drops queue entries and remote commands that are no messages: each would end the kombu worker that reads it.
    Kombu has no hook to check an entry before it is read. When the error is raised, the entry is no longer in the
    queue.
    """

    Message = SluiceMessage
    QoS = SluiceQoS
    _in_poll: Any  # the connection on which a read of the queues waits; None if none does
    _kept_client: Any = None  # for commands that do not block

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Create a client, or return the one that this channel has for commands that do not block.

        Kombu creates a client for each command. Redis-py then lists all callbacks of all commands anew, which was a
        fifth of the CPU time of an idle worker. The client holds no connection: each command takes one from the pool.
        """
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # kombu's types leave it out
        client = self._kept_client
        if client is None or client.connection_pool is not self.pool:  # kombu makes a new pool after a lost connection
            client = super()._create_client()  # type: ignore[misc]
            self._kept_client = client
        return client

    def _brpop_read(self, **options: Any) -> Any:
        try:
            read = super()._brpop_read(**options)  # type: ignore[misc]  # kombu's types leave it out
        except Empty:
            raise
        except Exception as error:
            if _is_wrong_type(error):
                self._drop_other_types()
                return None
            if _is_of_the_broker(error, self.connection):
                raise
            self._count_taken()
            note_dropped(DropReason.MALFORMED, repr(error))
            return None
        self._count_taken()
        return read

    def _receive_one(self, connection: Any) -> Any:
        """Receive what somebody has published. Kombu would leave what follows something that is no JSON unread."""
        try:
            return super()._receive_one(connection)  # type: ignore[misc]  # kombu's types leave it out
        except Empty:
            note_dropped(DropReason.MALFORMED, "a remote command that is no JSON")
            return None

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        """Deliver what somebody has published as a remote command; drop it if it is no message."""
        try:
            return super()._deliver_fanout_message(message, exchange)  # type: ignore[misc]  # kombu's types leave it out
        except Exception as error:
            if _is_of_the_broker(error, self.connection):
                raise
            note_dropped(DropReason.MALFORMED, repr(error))
            return None

    def _basic_cancel(self, consumer_tag: str) -> Any:
        """Take no more messages from a queue. Nothing may follow that would bring the acknowledgements along."""
        qos: Any = self.qos
        qos.send_acks()
        return super()._basic_cancel(consumer_tag)  # type: ignore[misc]  # kombu's types leave it out

    def _drop_other_types(self) -> None:
        """Delete a queue's key that is no list: nothing can be sent to it, and Redis refuses each read of all queues.

        What it held is no task of Sluice. Hints and ticks come again by themselves.
        """
        with self.conn_or_acquire() as client:
            for queue in self.active_queues:
                for priority in self.priority_steps:
                    key = self._q_for_pri(queue, priority)  # type: ignore[attr-defined]
                    try:
                        client.llen(key)
                    except ResponseError as error:
                        if not _is_wrong_type(error):
                            raise
                        client.delete(key)
                        note_dropped(DropReason.MALFORMED, f"the key of the queue {key} held no list, and was deleted")

    def close(self) -> None:
        """Close. Kombu would wait for the end of a read of the queues; a read without an answer is given up instead.

        If a message comes at this very moment, it is lost with the connection. All that queues hold may be lost, as
        with a worker that is killed: hints and ticks come again.
        """
        reading = self._in_poll
        if reading and not self.closed and not _has_answer(reading):
            self._in_poll = None
            reading.disconnect()
        super().close()

    def _count_taken(self) -> None:
        """Count the message just read. Kombu has moved its queue to the end of the cycle, so that others are next.

        A queue that was cancelled while it was read, as a pause does, is in the cycle no longer.
        """
        queues = self._queue_cycle.items  # type: ignore[attr-defined]  # kombu's types leave it out
        if queues:
            _taken[queues[-1]] += 1


def _has_answer(connection: Any) -> bool:
    """Whether the broker has answered on a connection, or it has failed: then reading from it takes no time."""
    sock = connection._sock
    try:
        return sock is None or bool(connection.can_read(timeout=0))
    except (RedisError, OSError):
        return True


class _RareTimers:
    """A transport with fewer timers: each wakes the worker's event loop, which costs more than what is looked at."""

    cycle: Any

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Set the timers of a connection."""
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]  # kombu's types leave it out
        self.cycle._binding_expiry_tref.cancel()
        self.cycle._binding_expiry_tref = loop.call_repeatedly(
            BINDINGS_SECONDS, self.cycle.maybe_refresh_binding_expiry
        )


class SluiceTransport(_RareTimers, kombu_redis.Transport):
    """Kombu's Redis transport with the channel above."""

    Channel = SluiceChannel


class SluiceSentinelChannel(SluiceChannel, kombu_redis.SentinelChannel):
    """The channel above, to the master that sentinels name; see `broker_options`."""

    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, "sentinels")
    master_name: str
    sentinels: list[list[Any]]
    sentinel_kwargs: dict[str, Any]

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        options = self._connparams(asynchronous)  # type: ignore[attr-defined]  # kombu's types leave it out
        del options["host"], options["port"]  # of the sentinel in the URL
        addresses = [(host, port) for host, port in self.sentinels]
        return sentinel_pool(self.master_name, addresses, self.sentinel_kwargs, **options)


class SluiceSentinelTransport(_RareTimers, kombu_redis.SentinelTransport):
    """Kombu's transport for Sentinel with the channel above."""

    Channel = SluiceSentinelChannel


def use_transport() -> None:
    """Make URLs of Redis and Sentinel use the transports above, in this process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "tasks.consumer:SluiceTransport"
    TRANSPORT_ALIASES["sentinel"] = "tasks.consumer:SluiceSentinelTransport"


class SluiceConsumer(Consumer):
    """Celery's consumer; it drops invalid messages. Celery ends on some of them, and logs pages about the others."""

    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]
    _clock: Clock = SystemClock()
    hub: Any
    _takes_one_queue = False
    _flush_at = 0.0  # when the events that wait are sent, monotonic; a lost connection may cancel that

    def __init__(self, *args: Any, **options: Any) -> None:
        of_worker = dict(options.get("worker_options") or {})
        of_worker["heartbeat_interval"] = of_worker.get("heartbeat_interval") or HEARTBEAT_SECONDS
        super().__init__(*args, **options | {"worker_options": of_worker})
        self._takes_one_queue = len(self.app.amqp.queues.consume_from) == 1  # now: a pause cancels one of them

    def on_send_event_buffered(self) -> None:  # type: ignore[override]  # celery-types: a callable
        """Send the events of tasks soon, with those that follow. Celery sends each by itself."""
        now = self._clock.monotonic()
        if self.hub and now >= self._flush_at:
            self._flush_at = now + EVENTS_SECONDS
            self.hub.call_later(EVENTS_SECONDS, self._flush_events)

    def _flush_events(self) -> None:
        self._flush_at = 0.0
        super()._flush_events()  # type: ignore[misc]  # celery-types leaves it out

    def stop(self) -> None:
        """Stop; the events that wait are sent before."""
        if self._flush_at:
            with contextlib.suppress(*self.connection_errors, *self.channel_errors):
                self._flush_events()
        super().stop()

    def ensure_connected(self, conn: Any) -> Any:
        """Connect; retry as long as the broker is unavailable."""
        conn.ensure_connection = partial(conn.ensure_connection, **_CONNECT_WAITS)
        connected = super().ensure_connected(conn)
        if self._takes_one_queue:
            transport: Any = connected.transport
            # Of channels that are made from now on, and of the one that the connection has made: it is the next one.
            for one in (transport, *transport.channels):
                one.brpop_timeout = QUEUE_WAIT_SECONDS
        return connected

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """Create the function that Celery calls with each message."""
        handle = super().create_task_handler(*args, **options)

        def on_message(message: Any) -> Any:
            try:
                misfit = _misfit(self.app, message)
                if misfit is None:
                    return handle(message)
                return self._drop(message, *misfit)
            except Exception as error:
                if _is_of_the_broker(error, self):
                    raise
                return self._drop(message, reason_of(error, settings_of(self.app)), repr(error))

        return on_message

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Drop a message that is not one of Celery's."""
        self._drop(message, DropReason.MALFORMED, "it names no task")

    def on_unknown_task(self, body: Any, message: Any, exc: Any) -> None:
        """Drop a message of a task that is not registered."""
        self._drop(message, DropReason.UNKNOWN_TASK, str(exc))

    def on_invalid_task(self, body: Any, message: Any, exc: Any) -> None:
        """Drop a message that breaks Celery's protocol, or has a content type that is not accepted."""
        self._drop(message, DropReason.MALFORMED, repr(exc))

    def on_decode_error(self, message: Any, exc: Any) -> None:
        """Drop a message with an unreadable body, or without a valid signature; also a remote command."""
        self._drop(message, reason_of(exc, settings_of(self.app)), repr(exc))

    def _drop(self, message: Any, reason: DropReason, what: str) -> None:
        note_dropped(reason, what)
        headers = message.headers if isinstance(message.headers, dict) else {}
        task_id = headers.get("id")
        request = worker_state.requests.pop(task_id, None) if isinstance(task_id, str) else None
        if request is not None:  # otherwise it would occupy a slot in the pool forever
            worker_state.reserved_requests.discard(request)
        if not message.acknowledged:
            message.reject_log_error(_logger, self.connection_errors)


def _misfit(app: Any, message: Any) -> tuple[DropReason, str] | None:
    """The reason why a message is not a valid call of one of our tasks; None if it is valid."""
    name = message.headers["task"]
    task = app.tasks.get(name) if isinstance(name, str) and name.startswith(OURS) else None
    if task is None:
        return DropReason.UNKNOWN_TASK, repr(name)[:WHAT_CHARS_MAX]
    if message.headers.get("eta") is not None:
        # Celery would take it from the queue at once, and keep it in this worker's memory with all others of its kind.
        return DropReason.MALFORMED, f"{name} has an ETA, as no message of Sluice has"
    arguments, keywords, _ = message.payload
    try:
        inspect.signature(task.run).bind(*arguments, **keywords)
    except TypeError as error:
        return DropReason.ARGUMENTS, f"{name}: {error}"
    return None
