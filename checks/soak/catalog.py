"""All faults by name, and the seeded schedule of a run."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from checks.soak.fault import Fault
from checks.soak.of_clocks import Clocks, ClockStepped
from checks.soak.of_database import BackendsTerminated, CommitUnanswered, RowsRefused
from checks.soak.of_failovers import (
    BrokerAway,
    LogFailover,
    LogReplicaFrozen,
    LogReplicaKilled,
    PostgresFailover,
    StandbyFrozen,
    StandbyKilled,
)
from checks.soak.of_people import (
    ColumnAdded,
    ConsumptionPaused,
    LettersReplayed,
    PartitionAdded,
    TableHeld,
    TriggerRefuses,
)
from checks.soak.of_processes import (
    BEYOND_VISIBILITY,
    ChildFrozen,
    ChildKilled,
    ClientKilled,
    ClockShifted,
    OlderVersion,
    ProgramFrozen,
    ProgramKilled,
    TwoBeats,
    any_ingest,
)
from checks.soak.of_servers import (
    ControlFlushed,
    DiskFull,
    LinkFault,
    MemoryFull,
    PoolerKilled,
    ServerFrozen,
    ServerKilled,
    TailLost,
    Together,
    WentBack,
)
from checks.soak.rig import Need

Make = Callable[[random.Random], Fault]

_PROGRAMS = {
    "ingest": any_ingest,
    "worker": lambda rig, _: rig.batches,
    "control-worker": lambda rig, _: rig.control,
    "beat": lambda rig, _: rig.beat,
}
_SERVERS = {
    "control-redis": lambda rig: rig.control_redis,
    "log": lambda rig: rig.log,
    "postgres": lambda rig: rig.postgres,
}
_HASTE = 0.15  # share of faults after which the next one does not wait until the system is well


def _all() -> dict[str, Make]:
    made: dict[str, Make] = {}
    for name, which in _PROGRAMS.items():
        frozen_seconds = (1.5, 3.5) if name == "ingest" else BEYOND_VISIBILITY
        made[f"{name}.kill"] = partial(ProgramKilled, name=name, which=which, seconds=(0.5, 2.5))
        made[f"{name}.freeze"] = partial(ProgramFrozen, name=name, which=which, seconds=frozen_seconds)
    made |= {"child.kill": ChildKilled, "child.freeze": ChildFrozen}
    for name, server in _SERVERS.items():
        made[f"{name}.kill"] = partial(ServerKilled, name=name, which=server)
        made[f"{name}.freeze"] = partial(ServerFrozen, name=name, which=server)
    made |= {
        "copy.terminate": partial(BackendsTerminated, moment="copy"),
        "commit.terminate": partial(BackendsTerminated, moment="commit"),
        "commit.unanswered": CommitUnanswered,
        "rows.refused": RowsRefused,
    }
    for link in ("postgres", "control", "log", "ingest"):
        for how in ("cut", "blackhole", "delay"):
            made[f"link-{link}.{how}"] = partial(LinkFault, link=link, how=how)
    made |= {
        "control-redis.flushall": ControlFlushed,
        "control-redis.full": partial(MemoryFull, name="control-redis", which=_SERVERS["control-redis"]),
        "log.full": partial(MemoryFull, name="log", which=_SERVERS["log"]),
        "log.tail-lost": TailLost,
        "postgres.disk-full": DiskFull,
        "two-beats": TwoBeats,
        "client.kill": ClientKilled,
        "pooler.kill": PoolerKilled,
    }
    for name in ("ingest", "control-worker", "beat"):
        made[f"{name}.clock"] = partial(ClockShifted, name=name, which=_PROGRAMS[name])
    for name in ("ingest", "worker"):
        made[f"{name}.old"] = partial(OlderVersion, name=name, which=_PROGRAMS[name])
    for name, clocks in _CLOCKS.items():
        made[f"{name}.step"] = partial(
            ClockStepped,
            name=name,
            clocks=clocks,
            is_ingest=name in ("ingest", "host"),
            is_control=name in ("control-redis", "host"),
        )
    for name, (log, control) in _BACK.items():
        made[f"{name}.back"] = partial(WentBack, name=name, log=log, control=control)
    for first, second in (("control-redis", "log"), ("log", "postgres"), ("control-redis", "postgres")):
        for how, server_fault in (("kill", ServerKilled), ("freeze", ServerFrozen)):
            name = f"{first}+{second}.{how}"
            made[name] = partial(_together, name=name, names=(first, second), server_fault=server_fault)
    made |= {
        "operator.pause": ConsumptionPaused,
        "operator.replay": LettersReplayed,
        "user.trigger": TriggerRefuses,
        "user.column": ColumnAdded,
        "user.lock": partial(TableHeld, how="lock"),
        "user.index": partial(TableHeld, how="index"),
        "log.partition-added": PartitionAdded,
        "log.failover": LogFailover,
        "log-replica.kill": LogReplicaKilled,
        "log-replica.freeze": LogReplicaFrozen,
        "broker.kill": partial(BrokerAway, how=ServerKilled),
        "broker.freeze": partial(BrokerAway, how=ServerFrozen),
        "postgres.failover": PostgresFailover,
        "postgres-standby.kill": StandbyKilled,
        "postgres-standby.freeze": StandbyFrozen,
    }
    return made


# Programs whose clocks are stepped together. A host's step affects all programs on it, as when a machine wakes up.
_CLOCKS: dict[str, Clocks] = {
    "ingest": lambda rig, pick: [rig.clocks[pick.choice(rig.ingests).name]],
    "worker": lambda rig, _: [rig.clocks[rig.batches.name]],
    "control-worker": lambda rig, _: [rig.clocks[rig.control.name]],
    "beat": lambda rig, _: [rig.clocks[rig.beat.name]],
    "control-redis": lambda rig, _: [rig.clocks["control-redis"]],
    "log": lambda rig, _: [rig.clocks["log"]],
    "host": lambda rig, _: [*rig.clocks.values()],
}
_BACK = {"log": (True, False), "control-redis": (False, True), "both-redis": (True, True)}


def _together(
    pick: random.Random, name: str, names: tuple[str, str], server_fault: type[ServerKilled] | type[ServerFrozen]
) -> Fault:
    return Together(pick, name, [server_fault(pick, one, _SERVERS[one]) for one in names])


FAULTS = _all()
# Faults that only one kind of log has.
_ONLY = {
    "redis": frozenset({"log.full", "log.tail-lost", "log.step", "log.back", "both-redis.back"}),
    "kafka": frozenset({"log.partition-added"}),
}


POOLED = "pooler.kill"  # only runs with a pooler have this fault
# Faults that only servers with copies have, by log.
_STANDBY = frozenset({"postgres.failover", "postgres-standby.kill", "postgres-standby.freeze"})
_REPLICATED = {
    "redis": frozenset({"log.failover", "log-replica.kill", "log-replica.freeze"}) | _STANDBY,
    "kafka": frozenset({"broker.kill", "broker.freeze"}) | _STANDBY,
}
# Faults that would remove the newest events from all copies at once (a replica follows a log that goes back), and
# faults that a pair on one machine does not have.
_SINGLE = frozenset({"log.tail-lost", "log.back", "both-redis.back", "postgres.disk-full", POOLED})


# An older version does not know a table by day: its workers refuse it, and the breaker opens for as long as they run.
_ONE_VERSION = frozenset({"worker.old"})


def possible_names(log: str, *, replicated: bool = False, by_day: bool = False) -> list[str]:
    """The faults that a run on this log can have, with copies of the servers or without."""
    others = set().union(*(names for kind, names in _ONLY.items() if kind != log))
    with_copies = _REPLICATED[log] if replicated else set()
    others |= set().union(*_REPLICATED.values()) - with_copies
    others |= _SINGLE if replicated else set()
    others |= _ONE_VERSION if by_day else set()
    return [name for name in FAULTS if name not in others]


def pools(seed: int) -> bool:
    """Whether programs reach PostgreSQL through a pooler for this seed: true for every second pair of seeds."""
    return seed % 4 >= 2


def needs_of(names: Iterable[str]) -> frozenset[Need]:
    """The needs of these faults."""
    needs = set()
    for name in names:
        if name.endswith(".step"):
            needs.add(Need.CLOCKS)
        if name.startswith("link-ingest."):
            needs.add(Need.INGEST_LINKS)
        if name == POOLED:
            needs.add(Need.POOLER)
    return frozenset(needs)


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of a schedule, with its gap before it, its duration and its own seed."""

    name: str
    gap_seconds: float
    share: float  # of the fault's range of durations, from 0 to 1
    hasty: bool  # the next one does not wait until the system is well
    seed: int

    def make(self) -> Fault:
        return FAULTS[self.name](random.Random(self.seed))

    def __str__(self) -> str:
        return f"{self.name} ({self.share:.2f}{', hasty' if self.hasty else ''})"


def schedule(
    log: str,
    count: int,
    seed: int,
    names: list[str] | None = None,
    *,
    replicated: bool = False,
    by_day: bool = False,
) -> list[Planned]:
    """`count` faults in an order from the seed: each fault once, then each once more in another order, and so on."""
    pick = random.Random(f"{seed} {log}")
    plan: list[Planned] = []
    deck: list[str] = []
    for _ in range(count):
        if not deck:
            possible = possible_names(log, replicated=replicated, by_day=by_day)
            deck = list(names or (one for one in possible if one != POOLED or pools(seed)))
            if names is None:
                pick.shuffle(deck)
            else:
                deck.reverse()  # in the requested order
        name = deck.pop()
        plan.append(Planned(name, pick.uniform(0.2, 1.0), pick.random(), pick.random() < _HASTE, pick.getrandbits(32)))
    return plan
