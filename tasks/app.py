"""The Celery application: its broker, queues, routes and limits.

`celery -A tasks.app worker -Q batches` drains, `-Q control` runs the control loop, `celery -A tasks.app beat` sends
ticks.
"""

import sys
from typing import Any, Final, cast

from celery import Celery
from kombu import Connection, Exchange
from kombu import Queue as KombuQueue

from beat_schedule import beat_schedule
from pipeline.clock import SystemClock
from pipeline.errors import SettingsError
from pipeline.loops import Loops
from pipeline.names import DRAIN_TASK, Queue
from pipeline.redis_link import broker_options, tls_options, unknown_option
from pipeline.settings import Settings, ignore_variables_of_others, misspelled_settings, no_system_to_ask
from tasks import refused as _refused  # noqa: F401 - replaces some of Celery's remote commands
from tasks import remote as _remote  # noqa: F401 - registers the remote commands
from tasks import signing
from tasks.consumer import use_transport
from tasks.dropped import connect_drops
from tasks.forced_shutdown import CONTROL_SECONDS_MAX, MIGRATION_SECONDS_MAX, ForcedShutdownStep
from tasks.known_pauses import KnownPauses
from tasks.metrics import MetricsStep
from tasks.pause import PauseFollower, PauseStep
from tasks.queue_watch import QueueWatchStep
from tasks.schema import SchemaStep
from tasks.sessions import SessionsStep
from tasks.startup import connect_signals
from tasks.timers import TimersStep

_NO_RETRY_LIMIT: Final = None


class SluiceCelery(Celery):
    """A Celery application with its settings and loops, so that tasks and worker steps find them."""

    control_cls = "tasks.remote_client:SluiceControl"

    @property
    def Beat(self) -> type:  # noqa: N802 - Celery's name
        """Celery's Beat, without a banner where log lines are JSON."""
        beat: type = cast(Any, self).subclass_with_self("tasks.startup:QuietBeat")
        return beat

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            "sluice", broker=broker_options(settings)[0], include=["tasks.drain", "tasks.control", "tasks.retention"]
        )
        self.sluice_settings = settings
        self.sluice_loops = Loops(SystemClock())  # of the worker's main process
        self.sluice_pause_follower: PauseFollower | None = None  # of a worker for `batches`
        self.sluice_known_pauses = KnownPauses()  # from that follower, for the children


def make_app(settings: Settings) -> SluiceCelery:
    """A Celery application for these settings. Raises SettingsError if Celery does not take an option of REDIS_URL."""
    use_transport()  # before the first connection: kombu remembers the transport of a URL's scheme
    _check_options(settings)
    app = SluiceCelery(settings)
    app.conf.update(celery_settings(settings) | signing.celery_settings(settings))
    signing.set_up(settings)
    app.conf.beat_schedule = beat_schedule(settings)
    app.steps["consumer"].add(PauseStep)
    app.steps["consumer"].add(QueueWatchStep)
    app.steps["worker"].add(TimersStep)
    app.steps["worker"].add(MetricsStep)
    app.steps["worker"].add(ForcedShutdownStep)
    app.steps["worker"].add(SessionsStep)
    app.steps["worker"].add(SchemaStep)
    connect_signals(settings)
    connect_drops(settings, app.sluice_loops)
    return app


def _check_options(settings: Settings) -> None:
    try:
        Connection(broker_options(settings)[0])  # reads the URL, and does not connect
    except TypeError as error:
        option = unknown_option(error)
        what = f"the option {option}" if option else f"an option ({error})"
        raise SettingsError(f"REDIS_URL has {what}, which Celery does not take") from error


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Celery's configuration. Each value that differs from Celery's default has its reason."""
    return {
        # JSON only: a pickle in the broker would run code in a worker.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # A task is a hint; PostgreSQL has the progress. Late acknowledgement would repeat hints, and crashes the worker
        # of Celery 5.7 when the broker connection is lost.
        "task_acks_late": False,
        "task_ignore_result": True,
        # A hint that is prefetched into a worker's memory would still run while its queue is paused.
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,  # Flower
        # Not "sent": it would be one more event for each task, and Flower shows the queues' lengths.
        "task_send_sent_event": False,
        # By default Celery verifies no certificate of a rediss:// URL.
        "broker_use_ssl": tls_options(settings, settings.redis_url) or None,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": _NO_RETRY_LIMIT,
        "broker_transport_options": {
            # One Redis server can serve two systems: the prefix separates their queues, as it separates their keys.
            "global_keyprefix": settings.key_prefix,
            "visibility_timeout": settings.visibility_timeout_seconds,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            **broker_options(settings)[1],
        },
        # Reconnect soon: while a drain is blocked, lag grows.
        "broker_connection_timeout": 2,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Hints that wait for a rate limit would occupy the slots of all others, even after the limit is removed.
        "worker_disable_rate_limits": True,
        "worker_max_tasks_per_child": None,
        "worker_hijack_root_logger": True,
        "worker_consumer": "tasks.consumer:SluiceConsumer",
        "worker_pool": "tasks.pool:TaskPool",
        "beat_scheduler": "tasks.ticking:TickScheduler",
        "task_default_queue": Queue.CONTROL.value,
        # Each queue has its own exchange: on the default one, both would be bound to the same routing key.
        "task_queues": [
            KombuQueue(queue.value, Exchange(queue.value, type="direct"), routing_key=queue.value) for queue in Queue
        ],
        "task_create_missing_queues": False,
        "task_routes": {DRAIN_TASK: {"queue": Queue.BATCHES.value}},
        # A task over its limit can only be frozen (a stopped server, a lost packet): its process is killed.
        "task_time_limit": CONTROL_SECONDS_MAX,
        "task_annotations": {
            DRAIN_TASK: {"time_limit": settings.drain_hard_seconds_max},
            "sluice.regulate": {"time_limit": MIGRATION_SECONDS_MAX},  # its first run migrates the schema
        },
        "timezone": "UTC",
        "enable_utc": True,
    }


for _words in (ignore_variables_of_others(), misspelled_settings()):
    if _words is not None:
        sys.stderr.write(f"celery: {_words}\n")
try:
    app = make_app(Settings.for_commands())
except SettingsError as error:
    # Otherwise Celery would print this module's traceback, with the error at its end.
    raise SystemExit(f"celery: {error}") from None
_problem = no_system_to_ask()
if _problem is not None:
    sys.stderr.write(f"celery: {_problem}; servers on their default ports are tried\n")
