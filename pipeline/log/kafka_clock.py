"""Lets the Kafka library measure its own times with the monotonic clock.

kafka-python-ng subtracts readings of the wall clock to decide when it may connect again, when its metadata is too old
and when a request has timed out. If the wall clock was one hour ahead during an attempt to connect, the producer does
not connect again within that hour. docs/adr/time.md says more.
"""

from types import SimpleNamespace
from typing import Final

import kafka.client_async
import kafka.cluster
import kafka.conn
import kafka.producer.buffer
import kafka.producer.kafka
import kafka.producer.record_accumulator
import kafka.producer.sender

from pipeline.clock import SystemClock

# The modules of the producer that call `time.time()`, and use it only to measure. The time stamps of records come from
# kafka.record, which keeps the wall clock.
MEASURING_MODULES: Final = (
    kafka.client_async,
    kafka.cluster,
    kafka.conn,
    kafka.producer.buffer,
    kafka.producer.kafka,
    kafka.producer.record_accumulator,
    kafka.producer.sender,
)


def measure_by_monotonic_clock() -> None:
    """Replace `time` in the modules above; a repeated call changes nothing."""
    clock = SystemClock()
    for module in MEASURING_MODULES:
        module.time = SimpleNamespace(time=clock.monotonic, sleep=clock.sleep)
