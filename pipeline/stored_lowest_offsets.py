"""Which offsets a log must not use again if it came back without its tail: those that were ever stored."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pipeline.errors import RecoverableError
from pipeline.ports.control import OffsetFence
from pipeline.ports.offset_store import OffsetStore

_logger = logging.getLogger(__name__)

_BRIEF_SECONDS: Final = 0.3  # a new connection and a read take 10 ms; an append has one second in total


class StoredLowestOffsets:
    """Source of the lowest offsets for a restarted log: the highest of the stored offsets and their mirror's.

    A complete mirror alone is sufficient. The offset store is read as well, with a short time limit: a mirror that was
    restored together with its server's memory does not notice that it is old. The read opens a new offset store, once
    after a restart of the log.
    """

    def __init__(self, fence: OffsetFence, open_offsets: Callable[[], OffsetStore]) -> None:
        self._fence = fence
        self._open_offsets = open_offsets

    def __call__(self, log_id: str, incarnation: str, *, is_new: bool = False) -> Mapping[int, int]:
        """Fence off older incarnations and return the lowest offsets.

        A new log has none, so the offset store is not read.

        Raises StoreUnavailableError if Redis is unavailable: the fence needs it. Raises SinkUnavailableError if the
        offset store is unavailable and the mirror is of an earlier life of Redis: then the lowest offsets need it.
        """
        mirror = self._fence.fence(log_id, incarnation)
        if mirror.is_complete:
            stored = self._asked_briefly(log_id)
        else:
            # A process that raised a lowest offset before the fence has already written the stored offset: wait for its
            # commit.
            stored = {} if is_new else _asked(self._open_offsets(), lambda offsets: offsets.settled_offsets(log_id))
            self._fence.seed(log_id, mirror.life, stored)
        partitions = mirror.lowest_offsets.keys() | stored.keys()
        return {p: max(mirror.lowest_offsets.get(p, 0), stored.get(p, 0)) for p in partitions}

    def _asked_briefly(self, log_id: str) -> dict[int, int]:
        """The stored offsets; empty if the store does not answer at once."""
        offsets = self._open_offsets()  # not within the time: it imports the client at the first call of a process
        executor = ThreadPoolExecutor(1, thread_name_prefix="stored-lowest-offsets")
        try:
            asked = executor.submit(_asked, offsets, lambda offsets: offsets.stored_offsets(log_id))
            return asked.result(_BRIEF_SECONDS)
        except (RecoverableError, TimeoutError) as error:
            _logger.warning(
                "the stored offsets can't be read (%s): the lowest offsets are those of their mirror in Redis alone",
                f"no answer within {_BRIEF_SECONDS:g} s" if isinstance(error, TimeoutError) else error,
                extra={"action": "lowest_offsets_of_mirror"},
            )
            return {}
        finally:
            executor.shutdown(wait=False)


def _asked(offsets: OffsetStore, ask: Callable[[OffsetStore], dict[int, int]]) -> dict[int, int]:
    with contextlib.closing(offsets):
        return ask(offsets)
