"""Trims a Kafka topic: deletes records that were stored, and only in a log that is surely the one that was stored."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pipeline.clock import Clock, SystemClock
from pipeline.errors import LogGapError, LogUnavailableError
from pipeline.log.kafka import CALL_SECONDS_MAX, KafkaLog
from pipeline.log.kafka_security import KafkaSecurity
from pipeline.log.kafka_topic import log_id_of, parse_bootstrap
from pipeline.log.kafka_wire import KafkaWire
from pipeline.ports.log import LowestOffsetsSource, record_digest
from pipeline.ports.log_marks import ExpiredRecords
from pipeline.ports.log_trimmer import TrimResult
from pipeline.settings import Settings

_FETCH_BYTES: Final = 1 << 20  # of the one record that is compared in each partition


class KafkaTrimmer:
    """LogTrimmer on Kafka. Connects for each call."""

    def __init__(self, settings: Settings, lowest_offsets: LowestOffsetsSource, clock: Clock | None = None) -> None:
        self._settings = replace(settings, kafka_fetch_bytes_max=_FETCH_BYTES)
        self._lowest_offsets = lowest_offsets
        self._clock = clock or SystemClock()

    def trim(self, log_id: str, expired: Sequence[ExpiredRecords]) -> TrimResult:
        security = KafkaSecurity.of(self._settings, self._clock)  # one for both clients: they use one access token
        with contextlib.closing(KafkaLog(self._settings, self._lowest_offsets, self._clock, security)) as log:
            if log.identity().log_id != log_id:
                raise LogUnavailableError("the event log (Kafka) is another one than the one that was stored")
            begins = {one.partition: one.begin for one in log.positions()}
            due = [one for one in expired if one.below > begins.get(one.partition, one.below)]
            below = {one.partition: one.below for one in due if _is_the_one_that_was_stored(log, one)}
        left = {
            one.partition: f"it does not hold the last stored record at offset {one.next_offset - 1}"
            for one in due
            if one.partition not in below
        }
        if not below:
            return TrimResult({}, left)
        wire = KafkaWire(
            parse_bootstrap(self._settings.event_log_url),
            call_seconds_max=CALL_SECONDS_MAX,
            clock=self._clock,
            security=security,
        )
        with contextlib.closing(wire):
            facts = wire.topic(self._settings.log_topic)  # as late as possible: the request has the name alone
            if facts is None or log_id_of(self._settings.log_topic, facts) != log_id:
                raise LogUnavailableError("the event log (Kafka) is another one than the one that was stored")
            now = wire.delete_records(self._settings.log_topic, facts.leaders, below)
        left |= dict.fromkeys(below.keys() - now.keys(), "its replicas have not done it yet")
        return TrimResult({partition: begin - begins[partition] for partition, begin in now.items()}, left)


def _is_the_one_that_was_stored(log: KafkaLog, expired: ExpiredRecords) -> bool:
    """Whether the partition holds the last stored record at its offset. Raises LogUnavailableError."""
    last = expired.next_offset - 1
    try:
        batch = log.read(expired.partition, last, records_max=1, wait_seconds=0)
    except LogGapError:  # it ends before: it lost its tail
        return False
    return batch is not None and batch.offset == last and record_digest(batch.values[0]) == expired.last_digest
