"""The few requests to Kafka that must end in bounded time: the topic's identity, its offsets, and commits.

kafka-python's own calls for these wait without limit while no broker can be reached (`committed`, `commit`, `poll` of a
consumer with a group, the admin client's constructor). It also has no Metadata version that contains the topic's id.
The encodings follow Kafka's protocol guide (kafka.apache.org/protocol). Kafka 2.8, the first version with topic ids, to
4.x support the versions used here.
"""

import struct
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pipeline.clock import Clock
from pipeline.errors import LogMisconfiguredError, LogUnavailableError
from pipeline.log.kafka_encoding import ResponseReader, array, string, uint
from pipeline.log.kafka_link import FRAME_BYTES_MAX, KafkaLink
from pipeline.log.kafka_security import NO_SECURITY, KafkaAnsweredError, KafkaRefusedError, KafkaSecurity

T = TypeVar("T")

BEGIN: Final = -2  # "timestamps" of ListOffsets
END: Final = -1
# Who asks for offsets. To a client, a leader says its end once it has been confirmed; to a "debugging replica" it says
# where its own records end.
_CLIENT: Final = -1
_DEBUGGING_REPLICA: Final = -2

# Request keys and the versions used
_FETCH: Final = (1, 9)  # from 9 on the request contains the leader's epoch: another leader refuses it
_LIST_OFFSETS: Final = (2, 4)  # from 4 on likewise
_METADATA: Final = (3, 10)
_OFFSET_COMMIT: Final = (8, 2)
_OFFSET_FETCH: Final = (9, 2)
_FIND_COORDINATOR: Final = (10, 0)
_CREATE_TOPICS: Final = (19, 2)
_DELETE_RECORDS: Final = (21, 1)
_DESCRIBE_CONFIGS: Final = (32, 1)

# Error codes with a meaning here
_OFFSET_OUT_OF_RANGE: Final = 1
UNKNOWN_TOPIC: Final = 3
_TIMED_OUT: Final = 7
_END_NOT_CONFIRMED: Final = 5  # "leader not available": how ListOffsets, up to version 4, says "offset not available"
TOPIC_EXISTS: Final = 36
_TOPIC_REFUSED: Final = frozenset({17, 29, 37, 38, 40, 44})  # name, permission, partitions, replicas, configs, policy
_TOPIC_IMPOSSIBLE: Final = {17: "its name is none that Kafka allows", 29: "this client may not see it"}
_NO_RIGHTS: Final = {29: "topic", 30: "consumer group", 31: "cluster"}

_TOPIC_RESOURCE: Final = 2

ANY_EPOCH: Final = -1  # of a leader: any


class OffsetGoneError(Exception):
    """A partition does not hold an offset: the record was trimmed, or was never written."""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """The cluster's facts about a topic. `leaders` has an entry for each partition; -1: no leader now.

    `epochs` has the leader epoch of each partition: while it stays the same, the partition can't have lost its tail.
    `replicas` and `in_sync` have the number of each partition's replicas, and of those that have all its records.
    """

    topic_id: uuid.UUID
    leaders: dict[int, int]
    epochs: dict[int, int] = field(default_factory=dict)
    replicas: dict[int, int] = field(default_factory=dict)
    in_sync: dict[int, int] = field(default_factory=dict)

    @property
    def led(self) -> dict[int, int]:
        """The leader of each partition that has one."""
        return {partition: leader for partition, leader in self.leaders.items() if leader >= 0}


@dataclass(frozen=True, slots=True)
class _Cluster:
    brokers: dict[int, tuple[str, int]]
    controller: int
    topic_error: int
    topic: TopicFacts | None


class KafkaWire:
    """Blocking requests, each with a time limit. Connects on first use; not for use by several threads at once.

    Every call raises LogUnavailableError if Kafka does not answer, or answers with an error. A request takes at most
    `call_seconds_max`, over all brokers that are tried; a call may need two or three requests.
    """

    def __init__(
        self,
        bootstrap: Sequence[tuple[str, int]],
        *,
        call_seconds_max: float,
        clock: Clock,
        security: KafkaSecurity = NO_SECURITY,
    ) -> None:
        self._bootstrap = list(bootstrap)
        self._call_seconds_max = call_seconds_max
        self._clock = clock
        self._security = security
        self._links: dict[tuple[str, int], KafkaLink] = {}
        self._brokers: dict[int, tuple[str, int]] = {}
        self._silent: set[tuple[str, int]] = set()  # brokers whose latest request failed: tried last
        self._coordinator: tuple[str, int] | None = None

    # --- Requests ---------------------------------------------------------------------------------------------------

    def topic(self, name: str) -> TopicFacts | None:
        """The topic's id and partitions; None if there is no such topic.

        Raises LogMisconfiguredError if Kafka cannot have a topic of this name.
        """
        cluster = self._cluster(name)
        if cluster.topic_error == UNKNOWN_TOPIC:
            return None
        if cluster.topic_error in _TOPIC_IMPOSSIBLE:
            raise LogMisconfiguredError(
                f"Kafka refuses the topic {name!r} (LOG_TOPIC): {_TOPIC_IMPOSSIBLE[cluster.topic_error]}"
            )
        _check("Metadata", cluster.topic_error)
        return cluster.topic

    def create_topic(self, name: str, *, partitions: int, replication: int, configs: Mapping[str, str]) -> None:
        """Create a topic; does nothing if it exists. Raises LogMisconfiguredError if Kafka refuses it."""
        cluster = self._cluster(name)
        body = array(
            [
                string(name)
                + struct.pack(">ih", partitions, replication)
                + array([])  # no manual assignment
                + array([string(key) + string(value) for key, value in configs.items()])
            ]
        ) + struct.pack(">ib", int(self._call_seconds_max * 1000), 0)
        answer = self._ask(cluster.brokers.get(cluster.controller), _CREATE_TOPICS, body)
        answer.int32()  # throttle time
        for _, error, message in answer.array(lambda: (answer.string(), answer.int16(), answer.string())):
            if error in _TOPIC_REFUSED:
                raise LogMisconfiguredError(f"Kafka refuses to make the topic {name} (error {error}): {message}")
            if error != TOPIC_EXISTS:
                _check("CreateTopics", error, message)

    def topic_configs(self, name: str, keys: Sequence[str]) -> dict[str, str]:
        """The active settings of a topic, including defaults."""
        body = array([struct.pack(">b", _TOPIC_RESOURCE) + string(name) + array([string(key) for key in keys])])
        answer = self._ask(None, _DESCRIBE_CONFIGS, body + b"\0")
        answer.int32()  # throttle time

        def synonym() -> None:
            answer.string()
            answer.string()
            answer.int8()

        def entry() -> tuple[str, str]:
            pair = answer.string(), answer.string()
            answer.take(3)  # read-only, source, sensitive
            answer.array(synonym)
            return pair

        found: dict[str, str] = {}
        for _ in range(answer.int32()):
            _check("DescribeConfigs", answer.int16(), answer.string())
            answer.int8()  # kind of resource
            answer.string()  # its name
            found.update(answer.array(entry))
        return found

    def offsets(
        self, name: str, leaders: Mapping[int, int], which: int, epochs: Mapping[int, int] | None = None
    ) -> dict[int, int]:
        """The begin or end offsets of partitions; `which` is BEGIN or END.

        A partition is left out if its leader does not answer, is not the leader of `epochs`, or is new and does not
        know yet what its replicas have. Raises LogUnavailableError if no partition is left.
        """
        found, unconfirmed = self.offsets_or_unconfirmed(name, leaders, which, epochs)
        if not found:
            raise LogUnavailableError(f"the new leaders of {sorted(unconfirmed)} of {name} (Kafka) do not say the end")
        return found

    def offsets_or_unconfirmed(
        self, name: str, leaders: Mapping[int, int], which: int, epochs: Mapping[int, int] | None = None
    ) -> tuple[dict[int, int], dict[int, int]]:
        """The same, and the ends of partitions whose new leader does not know yet what its replicas have.

        Such an end is that of the leader's own records. The last ones may be lost with it, but all that anybody ever
        read is before it, unless an unclean leader was elected.
        """
        found: dict[int, int] = {}
        unconfirmed: dict[int, int] = {}
        failure: LogUnavailableError | None = None
        for leader in sorted(set(leaders.values())):
            mine = {
                partition: (epochs or {}).get(partition, ANY_EPOCH)
                for partition, its in leaders.items()
                if its == leader
            }
            try:
                some, not_confirmed = self._offsets_of_leader(name, leader, mine, which, _CLIENT)
                found |= some
                if not_confirmed:
                    own = {partition: mine[partition] for partition in not_confirmed}
                    unconfirmed |= self._offsets_of_leader(name, leader, own, which, _DEBUGGING_REPLICA)[0]
            except LogUnavailableError as error:
                failure = error
        if not found and not unconfirmed:
            raise failure or LogUnavailableError(f"no partition of {name} on the event log (Kafka) says its offsets")
        return found, unconfirmed

    def _offsets_of_leader(
        self, name: str, leader: int, epochs: Mapping[int, int], which: int, asker: int
    ) -> tuple[dict[int, int], set[int]]:
        """Offsets of the partitions of `epochs` that this broker leads, and those that are not confirmed yet."""
        address = self._address(leader, name, sorted(epochs))
        wanted = array([struct.pack(">iiq", partition, epoch, which) for partition, epoch in epochs.items()])
        # Isolation level 0: up to the high watermark, the same as the reader.
        answer = self._ask(address, _LIST_OFFSETS, struct.pack(">ib", asker, 0) + array([string(name) + wanted]))
        answer.int32()  # throttle time
        found: dict[int, int] = {}
        not_confirmed = set()
        for _ in range(answer.int32()):
            answer.string()
            for _ in range(answer.int32()):
                partition, error = answer.int32(), answer.int16()
                answer.int64()  # timestamp
                offset = answer.int64()
                answer.int32()  # leader's epoch
                if not error:
                    found[partition] = offset
                elif error == _END_NOT_CONFIRMED:
                    not_confirmed.add(partition)
        return found, not_confirmed

    def fetch(
        self,
        name: str,
        partition: int,
        leader: int,
        offset: int,
        *,
        bytes_max: int,
        wait_seconds: float,
        epoch: int = ANY_EPOCH,
    ) -> bytes:
        """Record batches from the one that holds `offset` on, as Kafka stores them; empty if there are none.

        Waits up to `wait_seconds` for the first batch, in addition to the time limit of a request. A first batch larger
        than `bytes_max` is returned whole. A leader of another epoch refuses. Raises OffsetGoneError if the partition
        does not hold the offset.
        """
        address = self._address(leader, name, [partition])
        wait_ms = max(0, int(wait_seconds * 1000))
        wanted = array([struct.pack(">iiqqi", partition, epoch, offset, -1, bytes_max)])
        # Replica -1: a client. At least one byte. Isolation level 0: up to the high watermark. No session.
        body = struct.pack(">iiiibii", -1, wait_ms, 1, bytes_max, 0, 0, -1) + array([string(name) + wanted])
        answer = self._ask(
            address, _FETCH, body + array([]), extra_seconds=wait_ms / 1000, bytes_max=bytes_max + FRAME_BYTES_MAX
        )
        answer.int32()  # throttle time
        _check("Fetch", answer.int16())
        answer.int32()  # session
        found = b""
        for _ in range(answer.int32()):
            answer.string()
            for _ in range(answer.int32()):
                answer.int32()  # the partition
                error = answer.int16()
                if error == _OFFSET_OUT_OF_RANGE:
                    raise OffsetGoneError(f"partition {partition} of {name} does not hold offset {offset}")
                _check("Fetch", error)
                answer.int64()  # high watermark
                answer.int64()  # last stable offset
                answer.int64()  # begin
                for _ in range(answer.int32()):  # aborted transactions
                    answer.int64()
                    answer.int64()
                found = answer.blob()
        return found

    def ready(
        self,
        name: str,
        leader: int,
        offsets: Mapping[int, int],
        *,
        wait_seconds: float,
        epochs: Mapping[int, int],
    ) -> set[int]:
        """Wait until a leader has a record of one of its partitions from its offset on; returns those that have one.

        A partition for which it answers with an error is among them. Raises LogUnavailableError.
        """
        address = self._address(leader, name, sorted(offsets))
        wait_ms = max(0, int(wait_seconds * 1000))
        wanted = array(
            [struct.pack(">iiqqi", one, epochs.get(one, ANY_EPOCH), offset, -1, 1) for one, offset in offsets.items()]
        )
        # As in `fetch`, but of all records only the first batch: the high watermarks say which partitions have some.
        body = struct.pack(">iiiibii", -1, wait_ms, 1, 1, 0, 0, -1) + array([string(name) + wanted]) + array([])
        answer = self._ask(address, _FETCH, body, extra_seconds=wait_ms / 1000)
        answer.int32()  # throttle time
        _check("Fetch", answer.int16())
        answer.int32()  # session
        found = set()
        for _ in range(answer.int32()):
            answer.string()
            for _ in range(answer.int32()):
                partition, error, end = answer.int32(), answer.int16(), answer.int64()
                answer.take(16)  # last stable offset, begin
                for _ in range(answer.int32()):  # aborted transactions
                    answer.take(16)
                answer.blob()
                if error or end > offsets[partition]:
                    found.add(partition)
        return found

    def delete_records(self, name: str, leaders: Mapping[int, int], below: Mapping[int, int]) -> dict[int, int]:
        """Delete the records of partitions below an offset each; returns the new begins.

        A leader answers once its replicas have done it too. A partition is left out if they take too long: then it is
        done later. Raises LogUnavailableError, perhaps after some partitions were trimmed.
        """
        found: dict[int, int] = {}
        wait_ms = int(self._call_seconds_max * 500)
        for leader in sorted({leaders.get(partition, -1) for partition in below}):
            mine = {partition: offset for partition, offset in below.items() if leaders.get(partition, -1) == leader}
            address = self._address(leader, name, sorted(mine))
            wanted = array([struct.pack(">iq", partition, offset) for partition, offset in mine.items()])
            answer = self._ask(address, _DELETE_RECORDS, array([string(name) + wanted]) + struct.pack(">i", wait_ms))
            answer.int32()  # throttle time
            for _ in range(answer.int32()):
                answer.string()
                for _ in range(answer.int32()):
                    partition, begin, error = answer.int32(), answer.int64(), answer.int16()
                    if error != _TIMED_OUT:
                        _check("DeleteRecords", error)
                        found[partition] = begin
        return found

    def _address(self, leader: int, name: str, partitions: Sequence[int]) -> tuple[str, int]:
        address = self._brokers.get(leader)
        if address is None:
            raise LogUnavailableError(f"the event log (Kafka) has no leader for partitions {partitions} of {name}")
        return address

    def committed(self, group: str, name: str, partitions: Iterable[int]) -> dict[int, int | None]:
        """Committed offset of each partition; None if there is none."""
        wanted = array([struct.pack(">i", partition) for partition in partitions])

        def read(answer: ResponseReader) -> dict[int, int | None]:
            found: dict[int, int | None] = {}
            for _ in range(answer.int32()):
                answer.string()
                for _ in range(answer.int32()):
                    partition, offset = answer.int32(), answer.int64()
                    answer.string()  # metadata
                    _check("OffsetFetch", answer.int16())
                    found[partition] = offset if offset >= 0 else None
            _check("OffsetFetch", answer.int16())
            return found

        return self._ask_coordinator(group, _OFFSET_FETCH, string(group) + array([string(name) + wanted]), read)

    def commit(self, group: str, name: str, offsets: Mapping[int, int]) -> None:
        """Commit offsets for a group without members."""
        wanted = array([struct.pack(">iq", partition, offset) + string("") for partition, offset in offsets.items()])
        body = string(group) + struct.pack(">i", -1) + string("") + struct.pack(">q", -1)

        def read(answer: ResponseReader) -> None:
            for _ in range(answer.int32()):
                answer.string()
                for _ in range(answer.int32()):
                    answer.int32()
                    _check("OffsetCommit", answer.int16())

        self._ask_coordinator(group, _OFFSET_COMMIT, body + array([string(name) + wanted]), read)

    def close(self) -> None:
        """Close all connections; idempotent. A later call connects again."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._coordinator = None

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _cluster(self, name: str) -> _Cluster:
        """Brokers, controller and one topic. Never creates the topic."""
        data = name.encode()
        topic = bytes(16) + uint(len(data) + 1) + data + b"\0"  # no id: requested by name
        body = uint(2) + topic + b"\0\0\0\0"  # must not be created; no lists of allowed operations; no tags
        answer = self._ask(None, _METADATA, body, compact=True)
        answer.int32()  # throttle time

        def broker() -> tuple[int, tuple[str, int]]:
            number, host, port = answer.int32(), answer.compact_string(), answer.int32()
            answer.compact_string()  # rack
            answer.tags()
            return number, (host, port)

        def partition() -> tuple[int, int, int, int, int]:
            answer.int16()  # error; the leader -1 is sufficient
            number, leader, epoch = answer.int32(), answer.int32(), answer.int32()
            replicas, in_sync = answer.compact_array(answer.int32), answer.compact_array(answer.int32)
            answer.compact_array(answer.int32)  # offline replicas
            answer.tags()
            return number, leader, epoch, len(replicas), len(in_sync)

        self._brokers = dict(answer.compact_array(broker))
        answer.compact_string()  # cluster id
        controller = answer.int32()
        error, facts = UNKNOWN_TOPIC, None
        for _ in range(answer.uint() - 1):
            error = answer.int16()
            answer.compact_string()
            topic_id = uuid.UUID(bytes=answer.take(16))
            answer.int8()  # internal
            found = answer.compact_array(partition)
            leaders, epochs, replicas, in_sync = ({one[0]: one[place] for one in found} for place in range(1, 5))
            facts = TopicFacts(topic_id, leaders, epochs, replicas, in_sync)
            answer.int32()  # allowed operations
            answer.tags()
        return _Cluster(self._brokers, controller, error, facts)

    def _ask_coordinator(
        self, group: str, kind: tuple[int, int], body: bytes, read: Callable[[ResponseReader], T]
    ) -> T:
        """Send a request to the group's coordinator. If the known one fails, look the coordinator up again, once."""
        half = self._call_seconds_max / 2
        if self._coordinator is not None:
            try:
                return read(self._ask(self._coordinator, kind, body, seconds_max=half))
            except LogUnavailableError:
                self._coordinator = None
        answer = self._ask(None, _FIND_COORDINATOR, string(group), seconds_max=half)
        _check("FindCoordinator", answer.int16())
        answer.int32()  # number of the broker
        found = (answer.string(), answer.int32())
        said = read(self._ask(found, kind, body, seconds_max=half))
        self._coordinator = found
        return said

    def _ask(
        self,
        address: tuple[str, int] | None,
        kind: tuple[int, int],
        body: bytes,
        *,
        compact: bool = False,
        seconds_max: float | None = None,
        extra_seconds: float = 0.0,
        bytes_max: int = FRAME_BYTES_MAX,
    ) -> ResponseReader:
        """Send a request to one broker; None: to any that can be reached, each within its share of the time.

        After any failure the connection is closed: a late response must not be mistaken for the next one.
        """
        deadline = self._clock.monotonic() + (seconds_max or self._call_seconds_max) + extra_seconds
        failure: Exception | None = None
        failed = ("", 0)
        candidates = [address] if address else self._candidates()
        for number, candidate in enumerate(candidates):
            now = self._clock.monotonic()
            if failure is not None and now >= deadline:
                break
            its_deadline = now + (deadline - now) / (len(candidates) - number)
            try:
                answer = self._exchange(candidate, kind, body, its_deadline, compact=compact, bytes_max=bytes_max)
            except (OSError, ValueError, struct.error, KafkaRefusedError, LogUnavailableError) as error:
                if not isinstance(failure, KafkaRefusedError):  # that one says what to change
                    failure, failed = error, candidate
                self._forget(candidate)
                self._silent.add(candidate)
            else:
                self._silent.discard(candidate)
                return answer
        what = "refuses" if isinstance(failure, KafkaAnsweredError) else "does not answer"
        if isinstance(failure, KafkaRefusedError):  # it names the broker
            raise LogUnavailableError(f"the event log (Kafka) can't be used: {failure}") from failure
        place = " at EVENT_LOG_URL" if failed in self._bootstrap else ""  # else it is a broker that the cluster named
        raise LogUnavailableError(
            f"the event log (Kafka) {what}{place}: broker {failed[0]}:{failed[1]}: {failure}"
        ) from failure

    def _candidates(self) -> list[tuple[str, int]]:
        """First brokers with a connection, then those that the cluster named, then those of EVENT_LOG_URL."""
        known = dict.fromkeys([*self._links, *self._brokers.values(), *self._bootstrap])
        return sorted(known, key=self._silent.__contains__)

    def _forget(self, address: tuple[str, int]) -> None:
        link = self._links.pop(address, None)
        if link is not None:
            link.close()

    def _exchange(
        self,
        address: tuple[str, int],
        kind: tuple[int, int],
        body: bytes,
        deadline: float,
        *,
        compact: bool,
        bytes_max: int,
    ) -> ResponseReader:
        """Send one request and read its response.

        Raises OSError (including TimeoutError), ValueError, KafkaRefusedError.
        """
        link = self._links.get(address)
        if link is not None and not link.is_usable():
            self._forget(address)
            link = None
        if link is None:
            link = self._links[address] = KafkaLink(address, self._security, self._clock, deadline)
        return link.ask(kind, body, deadline, compact=compact, bytes_max=bytes_max)


def _check(request: str, error: int, message: str = "") -> None:
    if error in _NO_RIGHTS:
        message = f"(this user has no right on the {_NO_RIGHTS[error]}: docs/links.md)"
    if error:
        raise LogUnavailableError(f"the event log (Kafka) answers {request} with error {error} {message}".rstrip())
