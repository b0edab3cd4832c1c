"""Sending drain hints: deduplicated where they are only the net, unconditional where a run hands over to the next.

A hint has no expiry: it would be the sender's wall clock against the worker's. One that waited for long is as good as
any other, since a drain reads from where PostgreSQL stands.
"""

import logging
from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from pipeline.names import Queue
from pipeline.ports.control import Leases

_logger = logging.getLogger(__name__)

HINT_SECONDS_MAX: Final = 5.0  # a hint that has not arrived by then is taken for lost: the net sends another
HINTS_WAITING_MAX: Final = 4  # for each partition, in a queue that nobody empties: more would start no more drains


def _lease_name(partition: int) -> str:
    return f"hint:{partition}"


def send_net_hint(app: Celery, leases: Leases, partition: int) -> bool:
    """Send a hint unless one is under way; returns whether it was sent. Raises StoreUnavailableError."""
    token = leases.take(_lease_name(partition), seconds=HINT_SECONDS_MAX)
    if token is None:
        return False
    send_hint(app, partition, hint=token)
    return True


def send_hint(app: Celery, partition: int, *, hint: str | None) -> None:
    """Send a hint; one that can't be sent is replaced by the net's next one."""
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
    """A hint has arrived: the next one may be sent. Raises StoreUnavailableError."""
    if hint is not None:
        leases.give_back(_lease_name(partition), hint)
