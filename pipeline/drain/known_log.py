"""What all runs of one thread know of the event log."""

from pipeline.errors import LogRestartedError, LogUnavailableError
from pipeline.late_begin import LateBegin
from pipeline.ports.control import OffsetFence
from pipeline.ports.log import EventLog, LogIdentity


class KnownLog:
    """The log's identity, shared by all runs of one thread. When one run rereads it, all runs look up their offsets.

    Reading it acknowledges a restart of the log to the adapter, for every partition.
    """

    def __init__(self, log: EventLog, fence: OffsetFence) -> None:
        self._log = log
        self._fence = fence
        self._identity: LogIdentity | None = None  # None: must be read
        self._must_fence = False
        self._begins: dict[int, LateBegin] = {}  # by partition; each is used once

    def get(self) -> LogIdentity:
        """The log's identity. If a lowest offset was refused, first make this incarnation the current one.

        An append does that too, but there may be none for a long time, and the control store may have lost the fence.
        The log's identity is read once more afterwards: a late fence must not replace a newer one unnoticed.
        """
        if self._identity is None:
            identity = self._log.identity()
            if self._must_fence:
                self._fence.fence(identity.log_id, identity.incarnation)
                if self._log.identity() != identity:
                    raise LogRestartedError
                self._must_fence = False
            self._identity = identity
        return self._identity

    def begin(self, partition: int) -> LateBegin:
        """Where a partition begins in the log. Raises LogUnavailableError.

        The answer has all partitions, and serves each of them once: its next look-up asks again.
        """
        if partition not in self._begins:
            log_id, positions = self.get().log_id, self._log.positions()
            self._begins = {one.partition: LateBegin.of(log_id, one) for one in positions}
        if partition not in self._begins:
            raise LogUnavailableError(f"the event log's partition {partition} does not report its begin")
        return self._begins.pop(partition)

    def forget(self, *, must_fence: bool) -> None:
        """Read it again before it is used."""
        self._identity = None
        self._begins.clear()
        self._must_fence = self._must_fence or must_fence
