"""Once a second: counts what each account offered, and reports it to the controller if it shares out the rate."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ingest.accounts import Accounts, Surroundings
from pipeline.errors import StoreUnavailableError
from pipeline.loops import Loop
from pipeline.ports.offers import REPORT_SECONDS, Offers


class AccountReports:
    """One process' reports. Its blocking calls run on a separate thread, one at a time; a lost one is not repeated."""

    def __init__(
        self, offers: Offers | None, accounts: Accounts, around: Callable[[], Surroundings], process: str, loop: Loop
    ) -> None:
        self._offers = offers
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
                offered = self._accounts.fold(self._around())
                offers = self._offers
                if offers is None or not self._accounts.is_reporting:
                    continue
                with suppress(StoreUnavailableError):
                    await loop.run_in_executor(self._executor, offers.report, self._process, offered)
