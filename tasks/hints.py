"""Sends drain hints: fallback hints are deduplicated; a run that continues with the next hint always sends it.

A hint has no expiry: that would compare the sender's wall clock with the worker's. A hint that waited for long is as
good as any other, since a drain reads from PostgreSQL's stored offset.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from pipeline.clock import Clock
from pipeline.control_store.redis_queues import RedisQueues
from pipeline.errors import SluiceError, StoreUnavailableError
from pipeline.names import DRAIN_TASK, Queue
from pipeline.ports.control import Leases
from pipeline.ports.offset_store import OffsetStore

_logger = logging.getLogger(__name__)

HINT_SECONDS_MAX: Final = 5.0  # after this time, a hint that has not arrived counts as lost: the fallback sends another
HINTS_WAITING_MAX: Final = (
    4  # for each share of the partitions, in a queue without a consumer: more hints would start no more drains
)
_ARGUMENTS: Final = re.compile(r"\(([0-9]{1,9}),")  # of a hint, as text

# After the sink did not say which partitions have a drain, it is not asked again for this time: a silent server would
# hold up the ticks of the control loop.
_SINK_REST_SECONDS: Final = 10.0


def shares(partitions: int, drains_max: int) -> list[list[int]]:
    """The partitions of each drain, in order of their numbers."""
    return [list(range(first, partitions, drains_max)) for first in range(min(partitions, drains_max))]


def hinted(messages: Iterable[str]) -> set[int]:
    """The partitions of the hints among messages of a queue, by what their headers say: a body may be signed."""
    found = set()
    for message in messages:
        try:
            headers = json.loads(message)["headers"]
            is_hint, arguments = headers["task"] == DRAIN_TASK, str(headers["argsrepr"])
        except (ValueError, LookupError, TypeError, RecursionError):
            continue  # no message of Celery: the worker that takes it reports it
        partition = _ARGUMENTS.match(arguments) if is_hint else None
        if partition is not None:
            found.add(int(partition[1]))
    return found


def is_hinted(queues: RedisQueues, partition: int, drains_max: int) -> bool:
    """Whether a hint waits for the partition's share; False if that is unknown."""
    try:
        waiting = queues.messages(Queue.BATCHES, HINTS_WAITING_MAX * drains_max)
    except StoreUnavailableError:
        return False
    return any(one % drains_max == partition % drains_max for one in hinted(waiting))


class Drained:
    """Which partitions have a drain: they need no hint, since it ends with one."""

    def __init__(self, offsets: OffsetStore, clock: Clock) -> None:
        self._offsets = offsets
        self._clock = clock
        self._asks_at = clock.monotonic()

    def of(self, log_id: str, partitions: Sequence[int]) -> set[int]:
        """Those of the partitions that a drain holds. None of them if that is unknown: a needless hint does no harm."""
        if self._clock.monotonic() < self._asks_at:
            return set()
        try:
            return self._offsets.drained(log_id, partitions)
        except SluiceError as error:
            _logger.debug("which partitions have a drain is unknown: %s", error)
            self._asks_at = self._clock.monotonic() + _SINK_REST_SECONDS
            return set()


def _lease_name(share: int) -> str:
    return f"hint:{share}"


def send_net_hint(app: Celery, leases: Leases, share: int, partition: int) -> None:
    """Send a hint for a partition unless one for its share is in progress. Raises StoreUnavailableError.

    A share is named by its first partition.
    """
    token = leases.take(_lease_name(share), seconds=HINT_SECONDS_MAX)
    if token is not None:
        send_hint(app, partition, hint=token)


def send_hint(app: Celery, partition: int, *, hint: str | None) -> None:
    """Send a hint. If this fails, the next fallback hint replaces it."""
    try:
        app.send_task(
            DRAIN_TASK,
            args=(partition,),
            kwargs={"hint": hint},
            queue=Queue.BATCHES.value,
            retry=False,
        )
    except OperationalError as error:
        _logger.warning("hint for partition %d is not sent: %s", partition, error, extra={"action": "hint_failed"})


def give_back_hint(leases: Leases, share: int, hint: str | None) -> None:
    """Release the lease of a hint that arrived, so that the next one may be sent. Raises StoreUnavailableError."""
    if hint is not None:
        leases.give_back(_lease_name(share), hint)
