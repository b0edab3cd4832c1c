"""Rejects Celery's own remote commands that would block drains, and names the replacement.

Flower offers them in forms. No shown state includes their changes, and the changes outlast their reason.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from celery.worker.control import Panel

_logger = logging.getLogger(__name__)

_PAUSE: Final = "`control pause_consumption` pauses the drains, and `control resume_consumption` ends that"
_CONCURRENCY: Final = (
    "start the worker with another --concurrency: no less than the smaller of LOG_PARTITIONS and DRAINS_MAX, plus two"
)
REFUSED: Final = {
    # Hints that wait for their turn fill the worker's memory, and drains are blocked.
    "rate_limit": f"`control set_rate_limit` limits what ingest admits; {_PAUSE}",
    # A drain that is killed at its limit never sends the next hint.
    "time_limit": "DRAIN_HARD_SECONDS_MAX sets the time limit of a drain",
    "pool_shrink": _CONCURRENCY,
    "autoscale": _CONCURRENCY,
    # The worker would undo it for `batches`. Without a consumer of `control` the rate is not regulated, and drains
    # would block the control loop if they ran beside it.
    "add_consumer": f"a worker's queues are set at its start (-Q); {_PAUSE}",
    "cancel_consumer": _PAUSE,
}


def _refusal(name: str, instead: str) -> Callable[..., dict[str, str]]:
    def refuse(_state: Any, **_: Any) -> dict[str, str]:
        _logger.warning("Celery's command %s is refused: %s", name, instead, extra={"action": "command_refused"})
        return {"error": f"Sluice takes no {name}: {instead}"}

    return refuse


for _name, _instead in REFUSED.items():
    Panel.data[_name] = _refusal(_name, _instead)
