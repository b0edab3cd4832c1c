"""Pictures of the live page, one at the end of each phase. A browser in a thread of its own takes them."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from checks.loadgen.page import open_page, save_picture

BEFORE_END_SECONDS: Final = 1.0  # from a picture to the end of its phase
HEIGHT: Final = 1500  # pixels: with the charts
STOP_SECONDS_MAX: Final = 30.0


class Pictures:
    """Takes the planned pictures; an error goes into `problems`, and ends no test."""

    def __init__(self, url: str, folder: Path, password: str = "") -> None:
        self._url = url
        self._password = password  # of operators
        self._folder = folder
        self._planned: queue.Queue[tuple[float, str] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._take_all, daemon=True)
        self.taken: list[Path] = []
        self.problems: list[str] = []

    def plan(self, number: int, name: str, seconds: float) -> None:
        """Take a picture at the end of a phase that begins now and lasts `seconds`."""
        at = time.monotonic() + max(0.0, seconds - BEFORE_END_SECONDS)
        self._planned.put((at, file_name(number, name)))

    @contextlib.contextmanager
    def running(self) -> Iterator["Pictures"]:
        """Keep the browser open; at the end it takes the pictures that are still planned."""
        self._thread.start()
        try:
            yield self
        finally:
            self._planned.put(None)
            self._thread.join(STOP_SECONDS_MAX)

    def _take_all(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open_page(self._url, height=HEIGHT, password=self._password) as page:
                while (planned := self._planned.get()) is not None:
                    at, name = planned
                    page.wait_for_timeout(1000 * max(0.0, at - time.monotonic()))
                    path = self._folder / name
                    save_picture(page.screenshot(), path)
                    self.taken.append(path)
        except Exception as error:
            self.problems.append(f"no further pictures of the page: {error}")


def file_name(number: int, phase: str) -> str:
    """`page-3-5-times-the-rate.png` for the third phase."""
    words = "-".join("".join(one if one.isalnum() else " " for one in phase.lower()).split())
    return f"page-{number}-{words}.png"
