"""Once a second: counts what each account offered and what it was refused, and reports both to the control store."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ingest.accounts import Accounts, Surroundings
from pipeline.errors import StoreUnavailableError
from pipeline.loops import Loop
from pipeline.ports.offers import REPORT_SECONDS, Offers
from pipeline.ports.throttle import Throttle


class AccountReports:
    """One process' reports. Its blocking calls run on a separate thread, one at a time.

    A lost report of offers is not repeated; what was refused is in the next report too.
    """

    def __init__(
        self,
        accounts: Accounts,
        *,
        offers: Offers | None,
        throttle: Throttle | None,
        around: Callable[[], Surroundings],
        process: str,
        loop: Loop,
    ) -> None:
        self._offers = offers
        self._throttle = throttle
        self._accounts = accounts
        self._around = around
        self._process = process
        self._loop = loop
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="accounts")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start; call it on the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """End. A call that is running on the thread ends by its own time-out."""
        if self._task is not None:
            self._task.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            with self._loop.turn():
                offered, refused = self._accounts.fold(self._around()), self._accounts.refused_unreported
                offers, throttle = self._offers, self._throttle
                with suppress(StoreUnavailableError):
                    if offers is not None and self._accounts.is_reporting:  # the controller shares out the rate
                        await loop.run_in_executor(self._executor, offers.report, self._process, offered)
                    if throttle is not None and refused:
                        await loop.run_in_executor(self._executor, throttle.report, self._process, refused)
                        self._accounts.note_reported(refused)
