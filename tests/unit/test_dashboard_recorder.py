"""What the writer of the history asks the event log."""

from types import SimpleNamespace
from typing import Any

from ingest.dashboard.recorder import IDENTITY_SECONDS, Recorder
from pipeline.clock import ManualClock
from pipeline.errors import LogUnavailableError
from pipeline.ports.log import PartitionPosition
from pipeline.settings import Settings


class Log:
    """A log with two partitions that counts what it is asked."""

    def __init__(self) -> None:
        self.partitions = 2
        self.is_other = False  # another server process has it, which `identity` accepts
        self.identities = 0

    def identity(self) -> Any:
        self.identities += 1
        self.is_other = False
        return SimpleNamespace(partitions=self.partitions)

    def positions(self) -> list[PartitionPosition]:
        if self.is_other:
            raise LogUnavailableError("not the same log as at the last check")
        return [PartitionPosition(partition, 0, 5, 3, 5, 0) for partition in range(2)]


def test_the_logs_identity_is_read_every_few_seconds_and_after_a_failure() -> None:
    log, clock = Log(), ManualClock()
    readers: Any = SimpleNamespace(log=log)
    none: Any = None
    read: list[Any] = []
    recorder = Recorder(
        readers, deltas=none, admission=none, follower=none, settings=Settings(), clock=clock, loop=none,
        on_log_read=read.append,
    )  # fmt: skip
    # When it samples each second, then it reads the positions each time, and the identity once
    for _ in range(int(IDENTITY_SECONDS)):
        assert recorder._positions() == {"lags": [2, 2], "offsets": [3, 3], "consumed": 6}
        clock.advance(1.0)
    assert log.identities == 1
    # Partitions that were added are known after that time: until all answer there is no sample
    log.partitions = 3
    assert recorder._positions() == {}
    assert log.identities == 2
    # And a failure makes it read the identity again
    log.partitions, log.is_other = 2, True
    assert recorder._positions() == {}
    assert recorder._positions() != {}
    assert log.identities == 3
    # Each read is reported with the log that answered for all partitions, or with none
    whole = SimpleNamespace(partitions=2)
    assert read == [whole] * int(IDENTITY_SECONDS) + [None, None, whole]
    recorder.close()


def test_a_lease_beside_a_full_bucket_is_no_more_than_its_capacity() -> None:
    # Given a full bucket of 200 tokens, and a lease of 6
    admission: Any = SimpleNamespace(rate=lambda _: 200.0, tokens_seen=lambda _: 206)
    none: Any = None
    follower: Any = SimpleNamespace(newest=None)
    recorder = Recorder(
        none, deltas=none, admission=admission, follower=follower, settings=Settings(), clock=ManualClock(), loop=none
    )
    # Then the charts have what the card has
    assert recorder._own_view() == {"rate": 200.0, "tokens": 200}
    recorder.close()
