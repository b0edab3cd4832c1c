"""Sends drain hints: fallback hints are deduplicated; a run that continues with the next hint always sends it.

A hint has no expiry: that would compare the sender's wall clock with the worker's. A hint that waited for long is as
good as any other, since a drain reads from PostgreSQL's stored offset.
"""

import logging
from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from pipeline.names import Queue
from pipeline.ports.control import Leases

_logger = logging.getLogger(__name__)

HINT_SECONDS_MAX: Final = 5.0  # after this time, a hint that has not arrived counts as lost: the fallback sends another
HINTS_WAITING_MAX: Final = 4  # for each partition, in a queue without a consumer: more hints would start no more drains


def _lease_name(partition: int) -> str:
    return f"hint:{partition}"


def send_net_hint(app: Celery, leases: Leases, partition: int) -> bool:
    """Send a hint unless one is in progress; returns whether it was sent. Raises StoreUnavailableError."""
    token = leases.take(_lease_name(partition), seconds=HINT_SECONDS_MAX)
    if token is None:
        return False
    send_hint(app, partition, hint=token)
    return True


def send_hint(app: Celery, partition: int, *, hint: str | None) -> None:
    """Send a hint. If this fails, the next fallback hint replaces it."""
    try:
        app.send_task(
            "sluice.drain",
            args=(partition,),
            kwargs={"hint": hint},
            queue=Queue.BATCHES.value,
            retry=False,
        )
    except OperationalError as error:
        _logger.warning("hint for partition %d is not sent: %s", partition, error, extra={"action": "hint_failed"})


def give_back_hint(leases: Leases, partition: int, hint: str | None) -> None:
    """Release the lease of a hint that arrived, so that the next one may be sent. Raises StoreUnavailableError."""
    if hint is not None:
        leases.give_back(_lease_name(partition), hint)
