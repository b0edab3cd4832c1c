"""The checks of `sluice doctor`. It reuses the checks that processes run at their start."""

import contextlib
import http.client
import importlib
import importlib.metadata
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ingest.server import refuse_public, with_connections_that_fit
from ingest.tls import certificate_of
from pipeline import wiring
from pipeline.control_store.connection import ControlConnection
from pipeline.control_store.redis_cluster import refuse_cluster
from pipeline.control_store.rights import Role
from pipeline.control_store.rights_check import check_rights
from pipeline.errors import RecoverableError, SinkMisconfiguredError, SluiceError
from pipeline.flow.clocks import Look, difference_words
from pipeline.flow.lag import total_lag
from pipeline.health.runbooks import runbook_place
from pipeline.late_begin import EVENTS_SEARCHED, begin_late, late_begin_advice, late_begin_words, not_accepted
from pipeline.names import AlarmCode
from pipeline.ports.control import ControlEvent
from pipeline.ports.log import PartitionPosition
from pipeline.running import CODE, IS_CHECKOUT, home_of, how_to, stopped_system
from pipeline.secrets import url_problem
from pipeline.settings import Settings
from pipeline.sink.server_check import FSYNC_OFF
from pipeline.sink.session import Session
from pipeline.sink.sessions import limits_problem, limits_warning, read_limits, sessions_needed
from pipeline.text import counted
from sluice.findings import Check, Finding, Scene, State
from tasks import signing

PYTHONS: Final = ((3, 11), (3, 13))  # the oldest and the newest version that is tested
REDIS_MIN: Final = 7  # the oldest version that knows the scripts
DISK_FREE_SHARE_MIN: Final = 0.1  # as the alert DiskNearFull
_INGEST_SECONDS_MAX: Final = 2.0
_CORRECT_ADDRESS: Final = "correct INGEST_URL"
# This check asks whether ingest accepts events, so it does not verify the name in its certificate.
_UNVERIFIED: Final = ssl.create_default_context()
_UNVERIFIED.check_hostname = False
_UNVERIFIED.verify_mode = ssl.CERT_NONE
_OPENER: Final = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_UNVERIFIED)
)


# --- This shell and this machine ----------------------------------------------------------------------------------


def packages(scene: Scene) -> Iterator[Finding]:
    """Whether Python and the packages have the versions that Sluice was tested with."""
    low, high = PYTHONS
    if not low <= sys.version_info[:2] <= high:
        found = ".".join(map(str, sys.version_info[:3]))
        yield Finding("packages", State.WRONG, f"Python {found} is not tested", "use Python 3.11, 3.12 or 3.13")
    pins = pinned()
    if scene.settings.kafka_client == "confluent":
        pins |= pinned("confluent")
    wrong = [
        f"{name} {version_of(name)} (tested: {wanted})" for name, wanted in pins.items() if version_of(name) != wanted
    ]
    if wrong:
        do = "./run.sh installs them" if IS_CHECKOUT else "install Sluice again into an environment of its own"
        yield Finding("packages", State.WRONG, ", ".join(wrong), do)
    else:
        yield Finding("packages", State.OK, f"{len(pins)} packages have the tested versions")


def pinned(extra: str = "") -> dict[str, str]:
    """The versions of this version's packages, or of an extra: from the list beside the code, or from the package."""
    listed = CODE / (f"requirements-{extra}.txt" if extra else "requirements.txt")
    if listed.is_file():
        words = [line.partition("#")[0].strip() for line in listed.read_text(encoding="utf-8").splitlines()]
    else:
        parts = (word.partition(";") for word in importlib.metadata.requires("sluice") or ())
        when = f"extra == {extra!r}" if extra else ""
        words = [word.strip() for word, _, only_when in parts if only_when.strip().replace('"', "'") == when]
    pairs = (word.partition("==") for word in words)
    return {name: wanted for name, _, wanted in pairs if wanted and name != "pytest"}  # which no process needs


def version_of(name: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "is missing"


def proxies(scene: Scene) -> Iterator[Finding]:
    """Whether clients in this shell would ask a proxy for ingest. Sluice's own programs use none."""
    values = {
        name: scene.environ.get(f"{name}_proxy") or scene.environ.get(f"{name}_proxy".upper()) or ""
        for name in ("http", "https", "all", "no")
    }
    if problem := _address_problem(scene):
        yield Finding("proxies", State.WRONG, problem, _CORRECT_ADDRESS)
        return
    url = scene.settings.ingest_url or f"{scene.settings.ingest_scheme}://{scene.settings.ingest_host}"
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", parts.scheme
    used = values[scheme] or values["all"]
    if used and not urllib.request.proxy_bypass_environment(host, {"no": values["no"]}):  # type: ignore[attr-defined]
        yield Finding(
            "proxies",
            State.WRONG,
            # Without its user and password, which hide_secrets finds only behind a scheme.
            f"clients in this shell, such as curl, would ask the proxy {used.rpartition('@')[2]} for {host}",
            f"export NO_PROXY={','.join(filter(None, (values['no'], host)))}",
        )
    else:
        yield Finding("proxies", State.OK, f"no proxy is used for {host}")


def _address_problem(scene: Scene) -> str | None:
    """Why INGEST_URL can't be asked; None if it can, or is not set."""
    problem = url_problem(scene.settings.ingest_url, ("http", "https")) if scene.settings.ingest_url else None
    return None if problem is None else f"INGEST_URL {problem}"


def open_files(scene: Scene) -> Iterator[Finding]:
    """Whether ingest may open as many files as its connections need, with the limits of this shell."""
    fitting = with_connections_that_fit(scene.settings)  # it logs what does not fit
    yield Finding("open files", State.OK, f"enough for {fitting.ingest_connections_max:,} connections of ingest")


def disks(scene: Scene) -> Iterator[Finding]:
    """The free space under the paths that are watched, or that a system on this machine writes to."""
    settings = scene.settings
    paths = [part.strip() for part in settings.watched_paths.split(",") if part.strip()]
    home = home_of(scene.environ)
    paths += [str(home)] if home.is_dir() else []
    paths += [urlsplit(settings.event_sink_url).path] if settings.event_sink_url else []
    for path in dict.fromkeys(paths):
        try:
            found = os.statvfs(path)
        except OSError as error:
            yield Finding("disk", State.WRONG, f"{path}: {error.strerror}", "correct WATCHED_PATHS or EVENT_SINK_URL")
            continue
        yield disk_finding(path, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
    if not paths:
        yield Finding("disk", State.OK, "no path of this machine is watched (WATCHED_PATHS)")


def disk_finding(path: str, free_bytes: int, bytes_all: int) -> Finding:
    """Whether there is space."""
    share = free_bytes / bytes_all if bytes_all else 0.0
    what = f"{path}: {free_bytes / 2**30:,.1f} GiB free, {100 * share:.0f} %"
    if share >= DISK_FREE_SHARE_MIN:
        return Finding("disk", State.OK, what)
    return Finding("disk", State.WRONG, what, "free some space: RETENTION_DAYS deletes old events (docs/retention.md)")


def programs(scene: Scene) -> Iterator[Finding]:
    """Whether the programs of a system on this machine run."""
    if stopped := stopped_system(scene.environ):
        yield Finding("programs", State.WRONG, stopped)
        return
    try:
        from stack.system import SystemFolder  # noqa: PLC0415 - an image is without it, and without its packages
    except ModuleNotFoundError:
        return
    folder = SystemFolder(home_of(scene.environ))
    if folder.supervisor_pid() is None:
        if left := folder.remains():
            what = f"the supervisor of {folder.home} was killed and left {left} processes"
            yield Finding("programs", State.WRONG, what, f"{how_to('stop')} ends them")
        return
    yield from programs_findings({info["name"]: info["statename"] for info in folder.programs_now()}, folder.logs)


def programs_findings(states: Mapping[str, str], logs: Path) -> Iterator[Finding]:
    """A line for each program that does not run."""
    ended = {name: state for name, state in states.items() if state != "RUNNING"}
    for name, state in ended.items():
        yield Finding("programs", State.WRONG, f"{name} is {state}", f"look at {logs / f'{name}.log'}")
    if not ended:
        yield Finding("programs", State.OK, f"{len(states)} run")


# --- Settings -----------------------------------------------------------------------------------------------------


def access(scene: Scene) -> Iterator[Finding]:
    """Whether strangers could send or look, and whether certificates and keys can be used."""
    refuse_public(scene.settings)
    certificate_of(scene.settings)
    words = ["HTTPS" if scene.settings.ingest_tls_cert else "HTTP", f"at {scene.settings.ingest_host}"]
    if scene.settings.ingest_keys:
        words.append("clients need a key")
    yield Finding("access", State.OK, ", ".join(words))


def signed_messages(scene: Scene) -> Iterator[Finding]:
    """Whether the files for signed messages can be used."""
    if signing.is_on(scene.settings):
        signing.load(scene.settings)
        yield Finding("signing", State.OK, "key and certificates can be used")


# --- Servers ------------------------------------------------------------------------------------------------------


def redis(scene: Scene) -> Iterator[Finding]:
    """Whether the Redis of queues and control state can be used."""
    connection = ControlConnection(scene.settings)
    yield from redis_findings(connection.call("INFO", "server") | connection.call("INFO", "memory"))
    refuse_cluster(scene.settings)


def redis_findings(info: Mapping[str, Any]) -> Iterator[Finding]:
    """What a Redis says of itself."""
    version = str(info["redis_version"])
    if int(version.partition(".")[0]) < REDIS_MIN:
        yield Finding("Redis", State.WRONG, f"Redis {version} is too old", f"use Redis {REDIS_MIN} or newer")
        return
    policy, limit = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", 0))
    if limit and policy != "noeviction":
        yield Finding(
            "Redis",
            State.WRONG,
            f"Redis {version} evicts queues and control state at maxmemory (maxmemory-policy {policy})",
            "CONFIG SET maxmemory-policy noeviction, and the same in its file",
        )
        return
    yield Finding("Redis", State.OK, f"Redis {version}")


def rights(scene: Scene) -> Iterator[Finding]:
    """Which roles the users of this shell's URLs have the rights for: each process has one role."""
    missing: list[str] = []
    roles = []
    for role in Role:
        lacking, unasked = check_rights(scene.settings, role)
        if unasked:
            yield Finding("rights", State.UNKNOWN, unasked[0])
            return
        missing += lacking
        roles += [] if lacking else [role.value]
    if roles:
        yield Finding("rights", State.OK, f"in Redis, those of {', '.join(roles)}")
    else:
        yield Finding("rights", State.WRONG, missing[-1])


def event_log(scene: Scene) -> Iterator[Finding]:
    """Whether the event log can be used, and keeps what it accepts."""
    settings, log = scene.settings, wiring.make_log(scene.settings)
    try:
        identity = log.identity()  # it logs a log without append-only file
    finally:
        log.close()
    for fault in identity.faults:
        yield Finding("event log", State.WRONG, fault.what, fault.remedy)
    missing = identity.missing_replicas
    if missing is not None:
        yield Finding("event log", State.WRONG, missing.what, f"look at {missing.look_at}")
    if missing is None and not identity.faults:
        copies = "one copy" if settings.log_copies == 1 else f"{settings.log_copies} copies"
        kind = "Kafka" if settings.log_scheme == "kafka" else "Redis Streams"
        yield Finding("event log", State.OK, f"{kind}, {identity.partitions} partitions, {copies} of each event")


def postgresql(scene: Scene) -> Iterator[Finding]:
    """Whether PostgreSQL can be used: version, encoding, poolers, the table and the rights on it."""
    with contextlib.closing(Session(scene.settings)) as session:
        try:
            facts = session.check()
        except SinkMisconfiguredError as error:  # it runs, and its address is right
            page = runbook_place(AlarmCode.DATABASE_REFUSED, scene.settings.runbooks_url)
            yield Finding("PostgreSQL", State.WRONG, str(error), f"what {page} says for this text")
            return
    if not facts.has_fsync:
        yield Finding("PostgreSQL", State.WRONG, FSYNC_OFF, "set fsync=on, and start PostgreSQL again")
        return
    number = f"{facts.version // 10_000}.{facts.version % 10_000}"
    yield Finding("PostgreSQL", State.OK, f"PostgreSQL {number}, database {facts.database} as {facts.user}")


def sessions(scene: Scene) -> Iterator[Finding]:
    """Whether PostgreSQL allows the sessions that the system uses. A worker's --concurrency is not known here."""
    limits, needed = read_limits(scene.settings), sessions_needed(scene.settings)
    problem = limits_problem(limits, needed) or limits_warning(limits, needed)
    if problem is not None:
        yield Finding("sessions", State.WRONG, f"PostgreSQL: {problem}")
    else:
        what = f"PostgreSQL allows {limits.allowed} ({limits}), and this system uses up to {needed.all}"
        yield Finding("sessions", State.OK, f"{what}; a pooler before it must allow them too")


def schema(scene: Scene) -> Iterator[Finding]:
    """Whether the schema of the database is that of this version."""
    missing = wiring.make_schema(scene.settings).missing()
    if missing:
        do = "sluice migrate, or start a control worker of this version"
        yield Finding("schema", State.WRONG, f"the database lacks {', '.join(missing)}", do)
    else:
        yield Finding("schema", State.OK, "nothing is missing")


def stored(scene: Scene) -> Iterator[Finding]:
    """Whether the sink is the one that has stored what the event log no longer holds."""
    settings = scene.settings
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(wiring.make_log(settings)))
        storage = stack.enter_context(contextlib.closing(wiring.make_storage(settings)))
        log_id = log.identity().log_id
        positions = log.positions()
        offsets = storage.offsets.stored_offsets(log_id)
    events: Sequence[ControlEvent] = ()
    with contextlib.suppress(SluiceError):  # then nothing counts as accepted by an operator; another line says why
        events = wiring.make_control_events(settings).last(EVENTS_SEARCHED)
    yield stored_finding(settings, log_id, positions, offsets, events)


def stored_finding(
    settings: Settings,
    log_id: str,
    positions: Sequence[PartitionPosition],
    offsets: Mapping[int, int],
    events: Sequence[ControlEvent] = (),
) -> Finding:
    """How much of the event log is stored, or what the sink lacks of it and no operator has accepted."""
    late = not_accepted(settings, log_id, begin_late(log_id, positions, offsets), events).values()
    if late:
        return Finding("stored", State.WRONG, late_begin_words(settings, late), late_begin_advice(settings, late))
    lost = {one.partition: one.begin - offsets.get(one.partition, one.begin) for one in positions}
    if stopped := [partition for partition, count in lost.items() if count > 0]:
        what = f"the event log no longer has the next {counted(sum(lost[one] for one in stopped), 'record')} to store"
        return Finding("stored", State.WRONG, what, f"celery -A tasks.app inspect gap {stopped[0]}")
    waiting = total_lag(positions, offsets) or 0
    what = "all of the event log" if not waiting else f"all of the event log but {counted(waiting, 'event')}"
    return Finding("stored", State.OK, what)


def clocks(scene: Scene) -> Iterator[Finding]:
    """The clocks of this machine and of PostgreSQL beside that of the control store, which decides."""
    clock, beyond = scene.clock, scene.settings.clock_difference_seconds_max
    store = wiring.make_control_store(scene.settings, reads_keys=False)
    asked, wall = clock.monotonic(), clock.now()
    time = store.state().time
    by_wall, by_monotonic = Look(time, wall, clock.now()), Look(time, asked, clock.monotonic())
    storage = wiring.make_storage(scene.settings)
    database = None
    try:
        asked = clock.monotonic()
        stored = storage.offsets.stored_offsets_and_time("")
        if stored.time is not None:
            database = Look(stored.time, asked, clock.monotonic())
    except RecoverableError as error:
        yield Finding("clocks", State.UNKNOWN, f"PostgreSQL's clock is not checked: {error}")
    finally:
        storage.close()
    yield from clock_findings(by_wall, database, by_monotonic, beyond)


def clock_findings(store: Look, database: Look | None, store_monotonic: Look, beyond: float) -> Iterator[Finding]:
    """A line for each clock that differs; the rules are those of the control loop."""
    do = "time synchronisation (NTP, chrony) on that host"
    ahead = store.ahead_seconds(beyond=beyond)
    if ahead is not None:
        what = f"this machine's clock is {difference_words(-ahead)} that of Redis"
        yield Finding("clocks", State.WRONG, what, do)
    other = None if database is None else database.ahead_of(store_monotonic, beyond=beyond)
    if other is not None:
        yield Finding("clocks", State.WRONG, f"PostgreSQL's clock is {difference_words(other)} that of Redis", do)
    if ahead is None and other is None:
        whose = "of this machine and Redis" if database is None else "of this machine, Redis and PostgreSQL"
        yield Finding("clocks", State.OK, f"those {whose} differ by at most {beyond:g} s")


def ingest(scene: Scene) -> Iterator[Finding]:
    """Whether ingest takes events, if its address is known."""
    url = scene.settings.ingest_url
    if not url:
        return
    if problem := _address_problem(scene):
        yield Finding("ingest", State.WRONG, problem, _CORRECT_ADDRESS)
        return
    asked = scene.settings.ready_url(url)
    try:
        with _OPENER.open(asked, timeout=_INGEST_SECONDS_MAX):
            yield Finding("ingest", State.OK, f"{url} takes events")
    except urllib.error.HTTPError as error:
        yield Finding(
            "ingest", State.WRONG, f"{url} answers {error.code}: it takes no events", "sluice status says why"
        )
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        where, do = (url, _CORRECT_ADDRESS) if asked.startswith(url) else (asked, "correct OPERATOR_HOST")
        yield Finding("ingest", State.WRONG, f"{where} does not answer: {reason}", f"start ingest, or {do}")


# In the order of the lines: what explains later lines comes first.
OF_SHELL: Final = (
    Check("packages", packages),
    Check("proxies", proxies),
    Check("open files", open_files),
    Check("disk", disks),
    Check("programs", programs),
    Check("access", access),
    Check("signing", signed_messages),
)
OF_SERVERS: Final = (
    Check("Redis", redis, "start the server of REDIS_URL, or correct that setting"),
    Check("rights", rights),
    Check("event log", event_log, "start the server of EVENT_LOG_URL, or correct that setting"),
    Check("PostgreSQL", postgresql, "start the server of DATABASE_URL, or correct that setting"),
    Check("sessions", sessions),
    Check("schema", schema),
    Check("stored", stored),
    Check("clocks", clocks),
    Check("ingest", ingest),
)


def load(settings: Settings) -> None:
    """Import what checks import on their first use: that may take longer than an answer."""
    wiring.load_adapters(settings)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("stack.system")
