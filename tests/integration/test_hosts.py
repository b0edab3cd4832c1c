"""Two ingest hosts, one of workers, one of servers, and one of clients: cut off, with a wrong clock, and healed."""

import contextlib
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from checks.soak.rig import clock_environ
from checks.testbed.clocks import SteppableClock, fake_time_library
from checks.testbed.hosts import Host, connected_hosts, hosts_problem, links_here
from checks.testbed.processes import Program, batches_worker, beat, control_worker, http_status, ingest, supervised
from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from pipeline.settings import Settings
from stack.servers import Server, free_port, postgres_server, redis_server
from support.traffic import Traffic, assert_kept_promises, stored_ids

RATE = 80.0  # events/s, of all ingest hosts together
LARGE = 50  # events in a body, so that few requests exceed the rate on a busy machine too
SHARE_SECONDS = 5.0  # for which clients offer more than that
AHEAD_SECONDS = 3.0
EDGES = ("edge1", "edge2")
# Clients do not reach the servers, nor the workers: only ingest has a cable to both networks.
NETWORKS = {
    **dict.fromkeys(EDGES, ("front", "back")),
    "workers": ("back",),
    "servers": ("back",),
    "clients": ("front",),
}


@dataclass
class Site:
    """A system on five hosts."""

    hosts: dict[str, Host]
    settings: dict[str, Settings]  # of each ingest host
    database_url: str  # on the servers' host
    clocks: dict[str, SteppableClock] = field(default_factory=dict)  # by host
    programs: list[Program] = field(default_factory=list)

    def url(self, edge: str) -> str:
        return f"http://{self.settings[edge].ingest_host}:{self.settings[edge].ingest_port}"

    def health(self, edge: str) -> dict[str, Any]:
        """The health document of one ingest host, as its clients get it."""
        with (
            self.hosts["clients"].inside(),
            urllib.request.urlopen(f"{self.url(edge)}/api/logs/health", timeout=WAIT_SECONDS_MAX) as answer,
        ):
            document: dict[str, Any] = json.loads(answer.read())
            return document

    @contextlib.contextmanager
    def traffic(self, *edges: str, events_per_second: float = 30.0, batch: int = 5) -> Iterator[dict[str, Traffic]]:
        """Traffic from the clients' host, at this rate to each ingest host."""
        with contextlib.ExitStack() as stack:
            made = {}
            with self.hosts["clients"].inside():
                for edge in edges:
                    one = Traffic(self.url(edge), events_per_second=events_per_second, events_max=20_000, batch=batch)
                    made[edge] = stack.enter_context(one)
            yield made

    def check(self, traffic: dict[str, Traffic]) -> None:
        """Each acknowledged event is stored once, no other is, and each client got an answer to each request."""
        for edge, one in traffic.items():
            with self.hosts["servers"].inside():
                assert_kept_promises(one, self.database_url)
            assert one.outcomes.statuses.keys() & {"no answer", "no connection"} == set(), edge
            assert one.outcomes.acked, edge

    def stored(self, traffic: Traffic) -> int:
        with self.hosts["servers"].inside():
            return len(stored_ids(self.database_url, traffic.run))

    def stores_more(self, traffic: Traffic) -> bool:
        """Whether something is stored while 100 more events are acknowledged."""
        before = self.stored(traffic)
        traffic.wait_acked(100)
        return self.stored(traffic) > before

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; if it does not come, the logs' ends are in the error."""
        try:
            wait_until(condition, what)
        except AssertionError as error:
            logs = "\n".join(f"--- {one.name}\n{one.log()[-1500:]}" for one in self.programs)
            raise AssertionError(f"{error}\n{logs}") from None

    def names_clocks(self, edge: str) -> bool:
        """Whether the health of an ingest host names a wrong clock on the workers' host."""
        return any("clock" in reason and "workers" in reason for reason in self.health(edge)["reasons"])

    def wait_healthy(self) -> None:
        self.wait(lambda: all(self.health(edge)["status"] == "healthy" for edge in EDGES), "both are healthy")


def _servers(host: Host, folder: Path) -> list[Server]:
    """A control Redis, a log and a PostgreSQL that other hosts reach."""
    any_address = "0.0.0.0"  # of a host that only the test's own hosts reach
    control = redis_server(folder, free_port(), is_log=False, maxmemory="128mb", host=any_address, durable=False)
    log = redis_server(folder, free_port(), is_log=True, maxmemory="256mb", host=any_address, durable=False)
    for redis in (control, log):
        redis.command += ["--protected-mode", "no"]
    postgres = postgres_server(folder, free_port(), durable=False, host=any_address)
    with (folder / "postgres" / "pg_hba.conf").open("a") as file:
        file.write(f"host all all {host.addresses['back']}/24 trust\n")
    return [control, log, postgres]


def _seen_from_afar(server: Server, host: Host) -> str:
    return server.url.replace("127.0.0.1", host.addresses["back"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Iterator[Site]:
    if shutil.which("ip") is None:
        missing("there is no ip on the PATH (Debian: iproute2)")
    if (problem := hosts_problem()) is not None:  # most containers may not, in CI neither
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("hosts")
    with contextlib.ExitStack() as stack:
        own_links = links_here()
        hosts = stack.enter_context(connected_hosts(NETWORKS))
        assert links_here() == own_links  # the machine's own network is as it was
        with hosts["servers"].inside():
            servers = _servers(hosts["servers"], folder)
            for server in servers:
                server.start()
                stack.callback(server.stop)
        control, log, postgres = servers
        base = Settings(
            database_url=_seen_from_afar(postgres, hosts["servers"]),
            redis_url=_seen_from_afar(control, hosts["servers"]),
            event_log_url=_seen_from_afar(log, hosts["servers"]),
            ingest_open=True,
            operator_open=True,
            rate_max=RATE,
            rate_min=RATE / 2,
            regulate_seconds=0.5,
            drain_run_seconds_max=1.0,
            refused_ratio_max=1.0,  # to refuse is what some of these tests are for
        )
        settings = {edge: replace(base, ingest_host=hosts[edge].addresses["front"]) for edge in EDGES}
        site = Site(hosts, settings, postgres.url)
        _start_programs(site, base, folder, stack)
        with hosts["clients"].inside():
            site.wait(lambda: all(http_status(f"{site.url(edge)}/readyz") == 200 for edge in EDGES), "both are ready")
        yield site


def _start_programs(site: Site, base: Settings, folder: Path, stack: contextlib.ExitStack) -> None:
    """Ingest on each of its hosts, and the workers with Beat on theirs, each host under a clock of its own."""

    def start(host: str, *programs: Program) -> None:
        if fake_time_library() is not None:
            site.clocks[host] = SteppableClock(folder, host)
        for program in programs:
            if host in site.clocks:
                program.environ = clock_environ(site.clocks[host])
            site.programs.append(program)
            stack.callback(program.stop)
            program.start()

    for edge in EDGES:
        with site.hosts[edge].inside():
            start(edge, ingest(site.settings[edge], folder, edge))
    with site.hosts["workers"].inside():  # here the workers learn their host's name
        workers = (batches_worker(base, folder), control_worker(base, folder), beat(base, folder))
        start("workers", *workers)
        stack.enter_context(supervised(*workers))


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """All hosts connected, with the right clocks, and healthy; however the test ends, they are connected again."""
    running.wait_healthy()
    yield running
    for host in running.hosts.values():
        for network in host.addresses:
            host.heal(network)
    for clock in running.clocks.values():
        clock.step(-clock.seconds)


def test_the_rate_holds_for_all_ingest_hosts_together(site: Site) -> None:
    base = site.settings["edge1"]
    began = time.monotonic()
    # When clients offer ten times the rate, the same to each host
    with site.traffic(*EDGES, events_per_second=5 * RATE, batch=LARGE) as traffic:
        limited = [one.outcomes.statuses for one in traffic.values()]
        site.wait(
            lambda: time.monotonic() - began > SHARE_SECONDS and all(one["429"] and one["202"] for one in limited),
            "both hosts admit events, and refuse some",
        )
    seconds = time.monotonic() - began
    # Then both together admit what one would: the rate, one burst, a body, and what each has of a lease
    admitted = sum(len(one.outcomes.acked | one.outcomes.indeterminate) for one in traffic.values())
    assert admitted <= RATE * (seconds + base.burst_seconds + len(EDGES) * 1.5 * base.lease_seconds) + LARGE
    site.check(traffic)


def test_an_ingest_host_that_is_cut_off_from_the_servers_refuses_and_the_other_goes_on(site: Site) -> None:
    with site.traffic(*EDGES) as traffic:
        for one in traffic.values():
            one.wait_acked(20)
        # When the cable between one host and the servers is pulled
        site.hosts["edge1"].cut("back")
        cut_off = traffic["edge1"].outcomes
        site.wait(lambda: cut_off.statuses["503 unavailable"] >= 10, "its clients are refused")
        # Then nothing that it is sent is acknowledged, and the other one goes on
        acknowledged = len(cut_off.acked)
        traffic["edge2"].wait_acked(100)
        assert len(cut_off.acked) == acknowledged
        assert site.health("edge1")["status"] == "critical"
        # When it is healed
        site.hosts["edge1"].heal("back")
        # Then it acknowledges too
        traffic["edge1"].wait_acked(50)
    assert cut_off.statuses.keys() <= {"202", "429", "503 unavailable", "503 indeterminate"}
    site.check(traffic)
    site.wait_healthy()


def test_what_is_accepted_while_the_workers_host_is_cut_off_is_stored_once_after_that(site: Site) -> None:
    with site.traffic(*EDGES) as traffic:
        for one in traffic.values():
            one.wait_acked(20)
        # When the workers' host loses its cable in the middle of its drains
        site.hosts["workers"].cut("back")
        # Then clients are served, and nothing of that is stored (what PostgreSQL had received already may still be)
        site.wait(lambda: not any(site.stores_more(one) for one in traffic.values()), "nothing more is stored")
        # When it is healed
        site.hosts["workers"].heal("back")
    # Then all of it is stored, once
    site.check(traffic)
    site.wait_healthy()


def test_a_workers_host_whose_clock_is_ahead_drains_and_health_names_it(
    site: Site, missing: Callable[[str], None]
) -> None:
    if "workers" not in site.clocks:
        missing("there is no libfaketime on this machine")
    workers = [program for program in site.programs if program.name == "batches"]
    with site.traffic(*EDGES) as traffic:
        # When the clock of the workers' host is ahead of the others, and its worker starts again
        site.clocks["workers"].step(AHEAD_SECONDS)
        try:
            with site.hosts["workers"].inside():
                for worker in workers:
                    worker.stop()
                    worker.start()
            # Then each ingest host names it
            site.wait(lambda: all(map(site.names_clocks, EDGES)), "both name the clock of the workers' host")
            # And the new worker stores events
            site.wait(lambda: all(map(site.stores_more, traffic.values())), "events are stored")
        finally:
            site.clocks["workers"].step(-AHEAD_SECONDS)
        # When it is right again, nobody names it any more
        site.wait(lambda: not any(map(site.names_clocks, EDGES)), "neither names a clock")
    site.check(traffic)
    site.wait_healthy()


def test_each_host_has_a_name_of_its_own(site: Site) -> None:
    names = {name: host.host_name for name, host in site.hosts.items()}
    assert len(set(names.values())) == len(NETWORKS)
    worker = next(program for program in site.programs if program.name == "batches")
    assert f"@{names['workers']}" in worker.log()
