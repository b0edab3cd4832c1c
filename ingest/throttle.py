"""The answer of GET /api/logs/throttle: who was refused in the last minutes, how much, and why."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pipeline.clock import Clock
from pipeline.errors import StoreUnavailableError
from pipeline.flow.refusals import Refusals
from pipeline.ports.throttle import Throttle
from pipeline.refusals_text import throttle_document

KEPT_SECONDS: Final = 1.0  # an answer of the control store; the processes report as often
KNOWN_SECONDS: Final = 5.0  # between two questions for the health answer and the page, while much is refused
STALE_SECONDS: Final = 60.0  # an older answer is not shown there


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
        self._latest: tuple[Refusals, float] | None = None  # the newest answer, and when it came (monotonic)

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

    def known(self) -> Refusals:
        """The refusals of all processes as last known, or of this one; without a wait, and asks for newer ones."""
        latest = self._latest
        if not self._is_closed:
            with contextlib.suppress(RuntimeError):  # no event loop runs here
                self._ask_if_older(KNOWN_SECONDS)
        is_known = latest is not None and self._clock.monotonic() - latest[1] <= STALE_SECONDS
        return latest[0] if latest is not None and is_known else self._own()

    async def _read(self) -> Refusals | None:
        """The refusals of all processes; None if the control store does not answer."""
        if self._is_closed:
            return None
        # One call serves all requests that arrive meanwhile, also if the client of the first one disconnects.
        return (await asyncio.shield(self._ask_if_older(KEPT_SECONDS)))[0]

    def _ask_if_older(self, seconds: float) -> asyncio.Future[tuple[Refusals | None, float]]:
        """A question to the control store: the last one, if it is not older. Raises RuntimeError without a loop."""
        reading = self._reading
        if reading is None or (reading.done() and self._clock.monotonic() - reading.result()[1] > seconds):
            reading = self._reading = asyncio.get_running_loop().run_in_executor(self._executor, self._ask)
        return reading

    def _ask(self) -> tuple[Refusals | None, float]:
        found = None
        if self._throttle is not None:
            try:
                found = self._throttle.reported()
                self._latest = (found, self._clock.monotonic())
            except StoreUnavailableError:
                found = None
        return found, self._clock.monotonic()
