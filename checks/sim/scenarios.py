"""The scenarios: the clients' load, the sink's capacity, and the faults."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from checks.sim.processes import AfterRefusal, Load
from checks.sim.world import Fault, Scenario

SINK: Final = 1500.0  # events/s; the sink of most scenarios
_OVERLOAD: Final = 2 * SINK
_FREE: Final = 1e9  # events/s of a drain without a limit
_HOT_SHARES: Final = (0.7, 0.1, 0.1, 0.1)
_SLOW_SHARES: Final = (0.1, 0.3, 0.3, 0.3)

Of = Callable[[float], float]
Shares = Callable[[float], Sequence[float]]


def constant(value: float) -> Of:
    """The same value at all times."""
    return lambda _: value


def steps(*changes: tuple[float, float]) -> Of:
    """The value of the last (from second, value) that has begun; the first value holds before."""

    def value(at: float) -> float:
        now = changes[0][1]
        for begin, other in changes:
            if at >= begin:
                now = other
        return now

    return value


def _sine(at: float) -> float:
    return SINK * (1 + 0.9 * math.sin(2 * math.pi * at / 60))


def _bursts(at: float) -> float:
    return 5 * SINK if at % 20 < 5 else SINK / 10


def _one(rate: Of, **options: object) -> list[Load]:
    return [Load(rate, **options)]  # type: ignore[arg-type]


def _of(values: Sequence[float]) -> Shares:
    return lambda _: values


def _one_stands_still(at: float) -> Sequence[float]:
    return (0.0 if 60 <= at < 80 else _FREE, _FREE, _FREE, _FREE)


def _of_partitions(sink: Of, spread: list[Load]) -> list[Scenario]:
    """Scenarios with one partition that differs; each with bodies of many keys, and with bodies of one key."""
    one_key = _one(constant(_OVERLOAD), has_one_key=True)
    unequal: list[tuple[str, Shares | None, Sequence[float] | None]] = [
        ("equal partitions", None, None),
        ("dead partition", None, (0.0, _FREE, _FREE, _FREE)),
    ]
    return [
        Scenario(
            f"{name}{word}",
            90,
            load,
            sink,
            shares=shares,
            caps=None if caps is None else _of(caps),
            batch_max=100,
        )
        for name, shares, caps in unequal
        for word, load in (("", spread), (", one key a body", one_key))
    ]


def _mixed_bodies(rate: float) -> list[Load]:
    """Bodies of five sizes at once: equally many events of each, from senders that send equally often and obey."""
    sizes = (1, 20, 100, 512, 1000)
    return [
        Load(
            constant(rate / len(sizes)),
            body=size,
            after_refusal=AfterRefusal.OBEY,
            senders=round(3 * max(sizes) / size),
        )
        for size in sizes
    ]


def _one_heavy_account(small: int = 45) -> list[Load]:
    """An account that offers far more than the rate, and small accounts with bodies of one to twenty events."""
    heavy = Load(constant(5000), body=20, account="192.0.2.1")
    return [
        heavy,
        *(Load(constant(20), body=1 + number % 20, account=f"198.51.100.{number}") for number in range(small)),
    ]


def _all() -> list[Scenario]:
    sink, overload = constant(SINK), _one(constant(_OVERLOAD))
    found = [Scenario(f"steady {times}x", 110, _one(constant(times * SINK)), sink) for times in (1, 2, 5, 10)]
    found += [
        # What ./bench.sh M5 and M6 do.
        Scenario(f"cold {times}x", 20, _one(constant(times * SINK), is_even=True), sink, batch_max=250, judged_from=10)
        for times in (1, 2, 5, 10)
    ]
    found += [
        Scenario(
            "load step",
            38,
            _one(steps((0, SINK / 2), (8, _OVERLOAD)), is_even=True),
            sink,
            batch_max=250,
            judged_from=8,
            phases=(8,),
        ),
        Scenario(
            "load step, sink known",
            110,
            _one(steps((0, _OVERLOAD), (30, SINK / 2), (60, _OVERLOAD)), is_even=True),
            sink,
            batch_max=250,
            judged_from=60,
            phases=(60,),
        ),
        Scenario(
            "sink steps",
            200,
            _one(constant(5000)),
            steps((0, SINK), (60, 600), (120, 3000)),
            phases=(60, 120),
        ),
        # What ./bench.sh M9 does.
        Scenario(
            "sink steps, as measured",
            100,
            _one(constant(5000), is_even=True),
            steps((0, SINK), (25, 600), (60, 3000)),
            batch_max=250,
            judged_from=10,
            phases=(25, 60),
        ),
        Scenario("sine", 240, _one(_sine), sink),
        Scenario("bursts", 200, _one(_bursts), sink),
        Scenario("noisy sink", 150, overload, sink, noise=(0.2, 3.0)),
        Scenario("noisy sink, slowly", 150, overload, sink, noise=(0.2, 20.0)),
        Scenario("stall 20 s", 150, overload, steps((0, SINK), (60, 0), (80, SINK)), phases=(80,)),
        Scenario("outage 30 s", 170, overload, sink, faults=[Fault("sink down", 60, 90)], phases=(90,)),
        Scenario("idle", 220, _one(steps((0, _OVERLOAD), (40, 600), (160, 5 * SINK))), sink, phases=(160,)),
        Scenario(
            "idle, sink fell unseen",
            220,
            _one(steps((0, _OVERLOAD), (40, 300), (160, 5 * SINK))),
            steps((0, SINK), (80, 500)),
            phases=(160,),
        ),
        Scenario("hot partition", 150, overload, sink, shares=_of(_HOT_SHARES), caps=_of((600,) * 4), phases=(0,)),
        Scenario(
            "slow partition",
            200,
            overload,
            sink,
            shares=_of(_SLOW_SHARES),
            caps=_of((50, _FREE, _FREE, _FREE)),
            batch_max=100,
            phases=(0,),
        ),
        Scenario(
            "slow partition, one key a body",
            200,
            _one(constant(_OVERLOAD), has_one_key=True),
            sink,
            shares=_of(_SLOW_SHARES),
            caps=_of((50, _FREE, _FREE, _FREE)),
            batch_max=100,
            phases=(0,),
        ),
        *_of_partitions(sink, overload),
        Scenario("one partition stands still", 200, overload, sink, caps=_one_stands_still),
        Scenario("batches of 5,000", 150, overload, sink, batch_max=5000),
        Scenario(
            "fast sink 20,000",
            150,
            _one(constant(60_000), body=200),
            constant(20_000),
            batch_max=5000,
            nominal=20_000,
            phases=(0,),
        ),
        Scenario(
            "slow sink 150",
            200,
            _one(constant(1500)),
            constant(150),
            batch_max=100,
            nominal=150,
            settings={"rate_min": 10.0},
            phases=(0,),
        ),
        Scenario("lag unknown 40 s", 170, overload, sink, faults=[Fault("lag unknown", 60, 100)], phases=(100,)),
        Scenario(
            "state lost",
            170,
            overload,
            sink,
            faults=[Fault("state lost", at, at) for at in (50, 70, 90, 110)],
        ),
        Scenario(
            "controller restarts",
            170,
            overload,
            sink,
            faults=[Fault("controller restarts", at, at) for at in range(40, 170, 20)],
        ),
        Scenario("store down 20 s", 150, overload, sink, faults=[Fault("store down", 60, 80)], phases=(80,)),
        Scenario("override 300 for 30 s", 150, overload, sink, faults=[Fault("override", 60, 90, 300.0)], phases=(90,)),
        Scenario("paused 20 s", 150, overload, sink, faults=[Fault("paused", 60, 80)], phases=(80,)),
        Scenario(
            "clients obey Retry-After",
            150,
            _one(steps((0, 1200), (40, 5 * SINK), (60, 1200)), after_refusal=AfterRefusal.OBEY),
            sink,
        ),
        Scenario(
            "clients repeat at once",
            150,
            _one(steps((0, 1200), (40, 5 * SINK), (60, 1200)), after_refusal=AfterRefusal.AT_ONCE),
            sink,
        ),
        Scenario("8 ingest processes", 110, overload, sink, processes=8),
        Scenario("1 ingest process", 110, overload, sink, processes=1),
        Scenario("64 partitions", 110, overload, sink, partitions=64),
        Scenario(
            "one heavy account", 90, _one_heavy_account(), sink, settings={"admission_shares": True}, judged_from=20
        ),
        Scenario("one heavy account, shares off", 90, _one_heavy_account(), sink, judged_from=20),
        Scenario("mixed bodies", 150, _mixed_bodies(_OVERLOAD), sink, judged_from=40),
        # The rate is RATE_MIN under any policy.
        Scenario(
            "mixed bodies at the lowest rate",
            300,
            _mixed_bodies(200),
            sink,
            faults=[Fault("override", 0.1, 300, 100.0)],
        ),
    ]
    return found


SCENARIOS: Final = {scenario.name: scenario for scenario in _all()}
