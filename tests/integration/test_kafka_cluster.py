"""Several brokers: one that is away, or that comes back without its tail, is the trouble of its partitions only."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from checks.testbed.kafka_cluster import START_SECONDS_MAX, Cluster, kafka_brokers
from checks.testbed.waiting import eventually
from pipeline.breaker import SinkBreaker
from pipeline.clock import SystemClock
from pipeline.control_store.memory import MemoryControlStore, MemoryOffsetFence, MemoryServer
from pipeline.drain import drain
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import (
    LogIndeterminateError,
    LogMisconfiguredError,
    LogPartialError,
    LogUnavailableError,
    SluiceError,
)
from pipeline.flow.lag import held_lags, lag_by_partition
from pipeline.log.kafka import KafkaLog
from pipeline.log.kafka_topic import TOPIC_CONFIGS
from pipeline.ports.log import LogIdentity, PartitionPosition
from pipeline.sink.memory import MemorySink
from pipeline.stopped import Hole, StoppedContext, look, skip_gap
from stack.servers import ServerError, resolve_kafka
from support.event_logs import KafkaRig, log_settings, read_again, recovered, timed
from support.records import record

pytestmark = pytest.mark.timeout(600)  # a busy machine may take a minute to start a JVM

SECONDS_MAX = 180.0  # three brokers on a busy machine
APPEND_SECONDS_MAX = 10.0  # half of it would be a long time for a broker that is well
MINE, OTHERS = 1, (0, 2, 3)  # the partition of the broker that is killed, and those of the other one
EVERY = (MINE, *OTHERS)


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path, missing: Callable[[str], None]) -> Iterator[Cluster]:
    """Two brokers, or as many as the test asks for."""
    try:
        resolve_kafka()
    except ServerError as error:
        missing(str(error))
    with kafka_brokers(tmp_path, getattr(request, "param", 2)) as made:
        yield made


class System:
    """An ingest and a worker on a log of two brokers; what else they need is in memory."""

    def __init__(self, rig: KafkaRig) -> None:
        self.rig = rig
        settings, clock, server = rig.settings, SystemClock(), MemoryServer()
        self.sink = MemorySink(settings)
        self.fence = MemoryOffsetFence(settings, server)
        self.breaker = SinkBreaker(settings, MemoryControlStore(settings, server), clock, "test")
        self.log = KafkaLog(settings, self.read_lowest_offsets)
        # Two ingest processes, one with each library; `ingest` is the one that appends now.
        self.ingests = [
            KafkaLog(replace(settings, kafka_client=client), self.read_lowest_offsets)
            for client in ("kafka-python", "confluent")
        ]
        self.ingest = self.ingests[0]
        self.log_id = recovered(self.log.identity, seconds_max=SECONDS_MAX).log_id
        self.means = StoppedContext(self.log, self.sink, self.fence)
        self.sent = 0
        self.acknowledged: set[str] = set()
        self.append_seconds = 0.0

    def close(self) -> None:
        for log in (*self.ingests, self.log):
            log.close()

    def read_lowest_offsets(self, log_id: str, incarnation: str, *, is_new: bool = False) -> Mapping[int, int]:
        """LowestOffsetsSource."""
        mirror, stored = self.fence.fence(log_id, incarnation).lowest_offsets, self.sink.stored_offsets(log_id)
        return {partition: max(mirror.get(partition, 0), stored.get(partition, 0)) for partition in EVERY}

    def by_each(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds, first for one ingest that appends, then for the other."""
        for ingest in self.ingests:
            self.ingest = ingest
            eventually(condition, f"{what} ({ingest._settings.kafka_client})", seconds_max=SECONDS_MAX)

    def append(self, *partitions: int) -> dict[int, SluiceError | None]:
        """What an append of one event to each of these partitions comes to, for each."""
        numbers = {partition: self.sent + place for place, partition in enumerate(partitions)}
        self.sent += len(partitions)
        entries = [(partition, record(number)) for partition, number in numbers.items()]
        result, self.append_seconds = timed(lambda: self.ingest.append(entries))
        assert result is None or isinstance(result, LogPartialError | LogUnavailableError), repr(result)
        told = {
            partition: result.of([partition]) if isinstance(result, LogPartialError) else result
            for partition in partitions
        }
        self.acknowledged |= {f"event-{numbers[partition]:06d}" for partition in partitions if told[partition] is None}
        return told

    def must_append(self, partition: int, events: int) -> None:
        for number in range(events):
            self.ingest = self.ingests[number % 2]
            eventually(lambda: self.append(partition) == {partition: None}, "it is taken", seconds_max=SECONDS_MAX)

    def takes_all(self) -> bool:
        return self.append(*EVERY) == dict.fromkeys(EVERY)

    def positions(self) -> dict[int, PartitionPosition]:
        return {position.partition: position for position in recovered(self.log.positions, seconds_max=SECONDS_MAX)}

    def stored(self) -> dict[int, int]:
        return self.sink.stored_offsets(self.log_id)

    def drain(self, partition: int, end: int | None = None) -> DrainReport:
        """What a run comes to that ends when so much is stored."""
        deadline = time.monotonic() + SECONDS_MAX
        report = drain(
            partition, log=self.log, sink=self.sink, fence=self.fence, breaker=self.breaker,
            paused=lambda: self.stored().get(partition) == end or time.monotonic() > deadline,
            settings=self.rig.settings, clock=SystemClock(),
        )  # fmt: skip
        self.log.commit(self.log_id, partition, self.stored().get(partition, 0))
        return report

    def drain_all(self, *partitions: int) -> None:
        """Store all that the log holds, until it knows that: lag 0, also where PostgreSQL could not be asked."""

        def is_done() -> bool:
            ends = {partition: position.end for partition, position in self.positions().items()}
            for partition in partitions:
                self.drain(partition, ends[partition])
            known = [position for position in self.positions().values() if position.partition in partitions]
            return (
                lag_by_partition(known, None) == lag_by_partition(known, self.stored()) == dict.fromkeys(partitions, 0)
            )

        eventually(is_done, "all is stored and committed", seconds_max=SECONDS_MAX)


@pytest.fixture
def system(cluster: Cluster) -> Iterator[System]:
    rig = KafkaRig(log_settings(cluster.url, append_seconds_max=APPEND_SECONDS_MAX))
    eventually(lambda: _makes_topic(rig), "the topic is made over both brokers", seconds_max=SECONDS_MAX)
    rig.settings = replace(rig.settings, kafka_group=_group_of(rig, cluster.second.port))
    made = System(rig)
    yield made
    made.close()


def _makes_topic(rig: KafkaRig) -> bool:
    """Each partition has one replica."""
    admin: Any = None
    try:
        admin = rig.admin()
        assignment = {partition: [2 if partition == MINE else 1] for partition in EVERY}
        topic = NewTopic(rig.settings.log_topic, -1, -1, replica_assignments=assignment, topic_configs=TOPIC_CONFIGS)
        admin.create_topics([topic])
    except TopicAlreadyExistsError:
        return True
    except KafkaError:  # the second broker is not there yet
        return False
    finally:
        if admin is not None:
            admin.close()
    return True


def _group_of(rig: KafkaRig, port: int) -> str:
    """A group whose coordinator is the broker at this port."""
    wire = rig.wire()
    found: list[str] = []

    def look_for_one() -> bool:
        for number in range(20):
            wire.close()
            try:
                wire.committed(f"group {number}", rig.settings.log_topic, [0])
            except LogUnavailableError:  # Kafka makes its topic of commits
                return False
            if wire._coordinator is not None and wire._coordinator[1] == port:
                found.append(f"group {number}")
                return True
        return False

    eventually(look_for_one, "the broker is the coordinator of some groups", seconds_max=SECONDS_MAX)
    wire.close()
    return found[0]


def test_a_broker_that_is_away_and_one_that_lost_its_tail(cluster: Cluster, system: System) -> None:
    # Given a partition with 6 events, of which its disk keeps no more; 20 later ones are stored, and 3 are waiting
    system.by_each(system.takes_all, "all partitions take events")
    system.must_append(MINE, 4)
    kept = system.positions()[MINE].end
    folder = cluster.second_data / f"{system.rig.settings.log_topic}-{MINE}"
    copy = cluster.second_data.with_name("copy")
    shutil.copytree(folder, copy)
    system.must_append(MINE, 20)
    system.drain_all(*EVERY)
    stored = system.stored()[MINE]
    before = set(system.acknowledged)
    system.must_append(MINE, 3)
    lost = system.acknowledged - before
    lags = lag_by_partition(system.positions().values(), system.stored())
    assert lags == {MINE: system.positions()[MINE].end - stored, **dict.fromkeys(OTHERS, 0)}
    assert lags[MINE] >= 3

    # When its broker, which is the group's coordinator too, is killed
    stored_before = {partition: system.stored()[partition] for partition in OTHERS}
    cluster.second.kill()
    attempts = 0

    def refuses_one_alone() -> bool:
        nonlocal attempts
        attempts += 1
        told = system.append(*EVERY)
        assert isinstance(told[MINE], LogUnavailableError | LogIndeterminateError)
        is_refused = refuses(told[MINE], "has no leader") and [told[partition] for partition in OTHERS] == [None] * 3
        return is_refused and system.append_seconds < APPEND_SECONDS_MAX / 2

    # Then what is for that partition is refused at once, and what goes elsewhere is taken
    system.by_each(refuses_one_alone, "one partition is refused, the others are not")
    # And the lag of the others is known, and that of the partition held
    positions = system.positions()
    assert sorted(positions) == sorted(OTHERS)
    known = lag_by_partition(positions.values(), system.stored())
    assert known is not None
    assert min(known.values()) >= 1
    assert held_lags(known, len(EVERY), lags) == {MINE: lags[MINE]}
    # And another broker knows the group's commits, and takes more
    eventually(lambda: _commits(system) == stored_before, "the commits are known", seconds_max=SECONDS_MAX)
    system.drain_all(*OTHERS)

    # When it comes back without its tail
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    cluster.second.start()

    def finds_the_loss() -> bool:
        told = system.append(*EVERY)
        assert told[MINE] is not None
        return refuses(told[MINE], f"partition {MINE} of the event log (Kafka) has lost its tail") and told[0] is None

    # Then nothing is appended to it, where its next records would never be read, and the others go on
    system.by_each(finds_the_loss, "the loss is found")
    end = system.positions()[MINE].end
    assert kept <= end <= kept + attempts  # what was open when the broker was killed may have arrived
    assert end < stored
    system.by_each(finds_the_loss, "the loss is found again")
    assert system.positions()[MINE].end == end
    # And its drain stops, and says of which partition
    reports: list[DrainReport] = []
    eventually(lambda: _stops(system, reports), "the drain stops", seconds_max=SECONDS_MAX)
    assert f"partition {MINE} ends at {end}, before offset {stored - 1}" in str(reports[-1].error)
    # When somebody goes back to where it was put back to
    hole = recovered(lambda: look(system.means, MINE), seconds_max=SECONDS_MAX).hole
    assert hole == Hole(stored, end)
    goes_on = recovered(lambda: skip_gap(system.means, MINE, Hole(stored, kept), dry_run=False))
    # Then it takes events, and what comes in is stored
    assert goes_on == kept
    system.by_each(system.takes_all, "all partitions take events")
    system.drain_all(*EVERY)
    assert system.acknowledged - system.sink.database.events.keys() == lost  # they were on that disk alone


def _commits(system: System) -> dict[int, int | None]:
    return {partition: position.committed for partition, position in system.positions().items()}


def refuses(error: SluiceError | None, why: str) -> bool:
    """Whether nothing was written, for this reason."""
    return type(error) is LogUnavailableError and why in str(error)


def _stops(system: System, reports: list[DrainReport]) -> bool:
    reports.append(system.drain(MINE))
    return reports[-1].outcome is DrainOutcome.LOG_GAP


# --- Three brokers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_an_accepted_event_is_on_two_brokers_of_three(cluster: Cluster) -> None:
    # Given a topic that Sluice makes on three brokers
    rig = KafkaRig(log_settings(cluster.url, append_seconds_max=APPEND_SECONDS_MAX, kafka_replication=3))
    # A broker that has not begun when the topic is made would never be the preferred leader of a partition.
    eventually(
        lambda: _brokers(rig) == {1, 2, 3}, "all brokers have begun", seconds_max=START_SECONDS_MAX,
        passing=(KafkaError,),
    )  # fmt: skip
    log = rig.open()
    eventually(lambda: _identity(log) is not None, "the topic is made", seconds_max=SECONDS_MAX)
    rig.settings = replace(rig.settings, kafka_client="confluent")
    logs = (log, rig.open())
    eventually(lambda: _misses(log, nothing=True), "all replicas are in sync", seconds_max=SECONDS_MAX)
    assert recovered(log.identity).faults == ()
    assert _configs(rig) == {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}
    accepted: list[tuple[int, bytes]] = []
    _all_taken_by(logs, accepted)
    _await_leaders(rig, lambda leaders: 3 in leaders, "broker 3 leads a partition")

    # When brokers are stopped and started again, one after the other, as for an upgrade
    for broker in (cluster.second, cluster.first):
        broker.stop(seconds_max=START_SECONDS_MAX)
        # Then all partitions take events meanwhile (the first one is also the only controller, which makes leaders)
        if broker is not cluster.first:
            _all_taken_by(logs, accepted)
        broker.start(seconds_max=START_SECONDS_MAX)
        # And after that
        eventually(lambda: _misses(log, nothing=True), "all replicas are in sync", seconds_max=SECONDS_MAX)
        _all_taken_by(logs, accepted)

    # When another one is killed
    cluster.others[1].kill()
    # Then its partitions get another leader, and all take events; the missing replica is named
    _await_leaders(rig, lambda leaders: 3 not in leaders, "other brokers lead its partitions")
    _all_taken_by(logs, accepted)
    eventually(lambda: _misses(log, "2 of 3 are in sync", refuses=False), "that is named", seconds_max=SECONDS_MAX)
    # And the new leaders have what the old one had acknowledged
    _has_all(log, accepted)

    # When a second one is killed
    cluster.second.kill()
    # Then nothing is accepted, for certain and soon
    for one in logs:
        _await_refusal(one, accepted)
        eventually(partial(_is_refused_soon, one), "that is said at once", seconds_max=SECONDS_MAX)
    with pytest.raises(LogUnavailableError, match="asks for 2"):
        rig.open().prepare()  # a process that starts is not ready
    assert _misses(log, "fewer than 2 brokers are in sync", refuses=True)

    # When it is back
    cluster.second.start()
    # Then all is as before
    _all_taken_by(logs, accepted)
    eventually(lambda: _misses(log, "2 of 3 are in sync", refuses=False), "that is named", seconds_max=SECONDS_MAX)
    _has_all(log, accepted)

    # When somebody has brokers acknowledge what one of them has
    admin = rig.admin()
    topic = ConfigResource(
        ConfigResourceType.TOPIC, rig.settings.log_topic, configs={**TOPIC_CONFIGS, "min.insync.replicas": "1"}
    )
    admin.alter_configs([topic])
    admin.close()
    # Then the topic is refused by name
    eventually(lambda: len(recovered(log.identity).faults) == 1, "the fault is seen", seconds_max=SECONDS_MAX)
    (fault,) = recovered(log.identity).faults
    assert fault.loses_events
    assert "(min.insync.replicas=1), and KAFKA_REPLICATION=3 asks for 2" in fault.what
    # And so is one with fewer replicas
    rig.settings = replace(rig.settings, log_topic=f"{rig.settings.log_topic}-2", kafka_replication=2)
    eventually(lambda: _identity(rig.open()) is not None, "another topic is made", seconds_max=SECONDS_MAX)
    rig.settings = replace(rig.settings, kafka_replication=3)
    (fault,) = recovered(rig.open().identity).faults
    assert fault.loses_events
    assert "has fewer replicas than KAFKA_REPLICATION=3: 2 of partitions 0, 1, 2, 3" in fault.what
    rig.close()


def test_a_partition_is_used_again_once_its_topic_asks_for_fewer_copies(cluster: Cluster) -> None:
    # Given a topic that asks for two copies of which Sluice needs one, and events that the second broker has just got
    rig = KafkaRig(log_settings(cluster.first.url, append_seconds_max=APPEND_SECONDS_MAX))
    eventually(lambda: _made_with(rig, {**TOPIC_CONFIGS, "min.insync.replicas": "2"}), seconds_max=SECONDS_MAX)
    log, accepted = rig.open(), list[tuple[int, bytes]]()
    eventually(lambda: _identity(log) is not None, "the topic is there", seconds_max=SECONDS_MAX)
    _await_leaders(rig, lambda leaders: 2 in leaders, "broker 2 leads a partition")
    eventually(lambda: _takes_all(log, accepted), "all partitions take events", seconds_max=SECONDS_MAX)
    # When that broker is killed, and the topic asks for one copy afterwards
    cluster.second.kill()
    _await_leaders(rig, lambda leaders: 2 not in leaders, "the first one leads all")
    admin = rig.admin()
    configs = {**TOPIC_CONFIGS, "min.insync.replicas": "1"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, rig.settings.log_topic, configs=configs)])
    admin.close()
    # Then all partitions take events without it, also those with a new leader
    eventually(lambda: _takes_all(log, accepted), "all partitions take events", seconds_max=SECONDS_MAX)
    _has_all(log, accepted)
    rig.close()


def _made_with(rig: KafkaRig, configs: Mapping[str, str]) -> bool:
    """Make the topic with two replicas; False while not both brokers are there."""
    admin: Any = None
    try:
        admin = rig.admin()
        admin.create_topics([NewTopic(rig.settings.log_topic, len(EVERY), 2, topic_configs=dict(configs))])
    except TopicAlreadyExistsError:
        return True
    except KafkaError:
        return False
    finally:
        if admin is not None:
            admin.close()
    return True


def _identity(log: KafkaLog) -> LogIdentity | None:
    """None while not all brokers are there."""
    try:
        return log.identity()
    except (LogMisconfiguredError, LogUnavailableError):
        return None


def _misses(log: KafkaLog, what: str = "", *, nothing: bool = False, refuses: bool = False) -> bool:
    identity = _identity(log)
    missing = None if identity is None else identity.missing_replicas
    if nothing or missing is None:
        return identity is not None and missing is None and nothing
    return what in missing.what and missing.refuses_events == refuses


def _configs(rig: KafkaRig) -> dict[str, str]:
    wire = rig.wire()
    found = wire.topic_configs(rig.settings.log_topic, ["min.insync.replicas", "unclean.leader.election.enable"])
    wire.close()
    return found


def _brokers(rig: KafkaRig) -> set[int]:
    admin = rig.admin()
    try:
        return {broker["node_id"] for broker in admin.describe_cluster()["brokers"]}
    finally:
        admin.close()


def _await_leaders(rig: KafkaRig, condition: Callable[[set[int]], bool], what: str) -> None:
    """Wait until the set of the partitions' leaders is as it should be."""

    def is_so() -> bool:
        with contextlib.closing(rig.wire()) as wire:
            facts = wire.topic(rig.settings.log_topic)
        assert facts is not None
        return condition(set(facts.leaders.values()))

    eventually(is_so, what, seconds_max=SECONDS_MAX, passing=(LogUnavailableError,))


def _takes_all(log: KafkaLog, accepted: list[tuple[int, bytes]]) -> bool:
    """Append an event to each partition, note those that are accepted, and return whether all are."""
    entries = [(partition, b"%d" % len(accepted)) for partition in EVERY]
    result, _ = timed(lambda: log.append(entries))
    assert result is None or isinstance(result, LogPartialError | LogUnavailableError), repr(result)
    if result is not None and not isinstance(result, LogPartialError):
        return False
    taken = [entry for entry in entries if result is None or result.of([entry[0]]) is None]
    accepted += taken
    return len(taken) == len(entries)


def _all_taken_by(logs: Iterable[KafkaLog], accepted: list[tuple[int, bytes]]) -> None:
    for log in logs:
        eventually(
            partial(_takes_all, log, accepted),
            f"all partitions take events ({log._settings.kafka_client})",
            seconds_max=START_SECONDS_MAX,
        )


def _await_refusal(log: KafkaLog, accepted: list[tuple[int, bytes]]) -> None:
    eventually(lambda: _is_refused(log, accepted), "events are refused", seconds_max=SECONDS_MAX)


def _is_refused(log: KafkaLog, accepted: list[tuple[int, bytes]]) -> bool:
    before = len(accepted)
    result, _ = timed(lambda: log.append([(0, b"%d" % before)]))
    if result is None:
        accepted.append((0, b"%d" % before))
    return isinstance(result, LogUnavailableError) and "asks for 2" in str(result)


def _is_refused_soon(log: KafkaLog) -> bool:
    result, seconds = timed(lambda: log.append([(partition, b"no") for partition in EVERY]))
    assert isinstance(result, LogUnavailableError), repr(result)
    assert "has 1 replica in sync, and KAFKA_REPLICATION=3 asks for 2" in str(result)
    return seconds < APPEND_SECONDS_MAX / 2


def _has_all(log: KafkaLog, accepted: list[tuple[int, bytes]]) -> None:
    for partition in EVERY:
        held = read_again(log, partition)
        assert {value for its, value in accepted if its == partition} <= set(held)
