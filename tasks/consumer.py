"""The worker's consumer: whatever stands in the queue, it goes on, and says what it threw away."""

import inspect
import logging
from collections.abc import Callable
from functools import partial
from queue import Empty
from typing import Any, Final

from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from pipeline.names import DropReason
from tasks.dropped import WHAT_CHARS_MAX, note_dropped

_logger = logging.getLogger(__name__)

# Between two tries to connect to a broker that is away. Celery's own waits grow to 30 s, and hints would wait for as
# long once it is back.
_CONNECT_WAITS: Final = {"interval_start": 1, "interval_step": 1, "interval_max": 5}
OURS: Final = "sluice."  # how the names of our tasks begin


def _is_of_the_broker(error: Exception, lists: Any) -> bool:
    """Whether the broker failed, and not the message: by the lists of a transport or consumer.

    Kombu lists KeyError as an error of the connection too. A message that lacks a part raises it.
    """
    return isinstance(error, (*lists.connection_errors, *lists.channel_errors)) and not isinstance(error, KeyError)


_taken: Final = [0]


def messages_taken() -> int:
    """Messages that this process has taken out of its queue, good ones and others."""
    return _taken[0]


class SluiceChannel(kombu_redis.Channel):
    """Kombu's, but for a line of the queue that is no message: kombu's worker ends by it, and so does each next one.

    Kombu gives no place to look at a line before it is read. By the time of the error it is out of the queue.
    """

    def _brpop_read(self, **options: Any) -> Any:
        try:
            read = super()._brpop_read(**options)  # type: ignore[misc]  # kombu's types leave it out
        except Empty:
            raise
        except Exception as error:
            if _is_of_the_broker(error, self.connection):
                raise
            _taken[0] += 1
            note_dropped(DropReason.MALFORMED, repr(error))
            return None
        _taken[0] += 1
        return read


class SluiceTransport(kombu_redis.Transport):
    """Kombu's Redis transport with the channel above."""

    Channel = SluiceChannel


def use_transport() -> None:
    """Let URLs of Redis take the transport above, in this process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "tasks.consumer:SluiceTransport"


class SluiceConsumer(Consumer):
    """Celery's, but for messages that are no good: Celery ends by some, and prints pages about the others."""

    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]

    def ensure_connected(self, conn: Any) -> Any:
        """Connect; as long as the broker is away, try again and again."""
        conn.ensure_connection = partial(conn.ensure_connection, **_CONNECT_WAITS)
        return super().ensure_connected(conn)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """What is called with each message."""
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
                return self._drop(message, DropReason.MALFORMED, repr(error))

        return on_message

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Not one of Celery's."""
        self._drop(message, DropReason.MALFORMED, "it names no task")

    def on_unknown_task(self, body: Any, message: Any, exc: Any) -> None:
        """A task that is not registered."""
        self._drop(message, DropReason.UNKNOWN_TASK, str(exc))

    def on_invalid_task(self, body: Any, message: Any, exc: Any) -> None:
        """A message that breaks Celery's protocol, or is of a content type that is not taken."""
        self._drop(message, DropReason.MALFORMED, repr(exc))

    def on_decode_error(self, message: Any, exc: Any) -> None:
        """A body that can't be read."""
        self._drop(message, DropReason.MALFORMED, repr(exc))

    def _drop(self, message: Any, reason: DropReason, what: str) -> None:
        note_dropped(reason, what)
        headers = message.headers if isinstance(message.headers, dict) else {}
        task_id = headers.get("id")
        request = worker_state.requests.pop(task_id, None) if isinstance(task_id, str) else None
        if request is not None:  # else it would take up a place in the pool for ever
            worker_state.reserved_requests.discard(request)
        if not message.acknowledged:
            message.reject_log_error(_logger, self.connection_errors)


def _misfit(app: Any, message: Any) -> tuple[DropReason, str] | None:
    """Why a message can't be one of our tasks' with arguments that it takes; None where it can."""
    name = message.headers["task"]
    task = app.tasks.get(name) if isinstance(name, str) and name.startswith(OURS) else None
    if task is None:
        return DropReason.UNKNOWN_TASK, repr(name)[:WHAT_CHARS_MAX]
    arguments, keywords, _ = message.payload
    try:
        inspect.signature(task.run).bind(*arguments, **keywords)
    except TypeError as error:
        return DropReason.ARGUMENTS, f"{name}: {error}"
    return None
