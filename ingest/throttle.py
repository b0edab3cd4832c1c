"""The answer of GET /api/logs/throttle: who was refused in the last minutes, how much, and why."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pipeline.clock import Clock
from pipeline.errors import StoreUnavailableError
from pipeline.flow.refusals import Refusals
from pipeline.ports.throttle import Throttle
from pipeline.refusals_text import throttle_document

KEPT_SECONDS: Final = 1.0  # an answer of the control store; the processes report as often


class ThrottleView:
    """Reads the refusals of all processes for requests, at most once in KEPT_SECONDS. For the event loop only.

    While the control store does not answer, the answer has those of this process alone.
    """

    def __init__(self, throttle: Throttle | None, own: Callable[[], Refusals], clock: Clock) -> None:
        self._throttle = throttle
        self._own = own
        self._clock = clock
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="throttle")
        self._is_closed = False
        self._reading: asyncio.Future[tuple[Refusals | None, float]] | None = None

    def close(self) -> None:
        """End. A call that is running on the thread ends by its own time-out."""
        self._is_closed = True
        self._executor.shutdown(wait=False)

    async def document(self, account: str | None, *, only: bool = False) -> dict[str, Any]:
        """The body of GET /api/logs/throttle, of all accounts or of one; `only`: the sums are of that one too."""
        whole = await self._read()
        found = self._own() if whole is None else whole
        if only and account is not None:
            found = Refusals({name: one for name, one in found.accounts.items() if name == account})
        return throttle_document(found, account, is_complete=whole is not None)

    async def _read(self) -> Refusals | None:
        """The refusals of all processes; None if the control store does not answer."""
        if self._is_closed:
            return None
        reading = self._reading
        if reading is None or (reading.done() and self._clock.monotonic() - reading.result()[1] > KEPT_SECONDS):
            # One call serves all requests that arrive meanwhile, also if the client of the first one disconnects.
            reading = self._reading = asyncio.get_running_loop().run_in_executor(self._executor, self._ask)
        return (await asyncio.shield(reading))[0]

    def _ask(self) -> tuple[Refusals | None, float]:
        found = None
        if self._throttle is not None:
            try:
                found = self._throttle.reported()
            except StoreUnavailableError:
                found = None
        return found, self._clock.monotonic()
