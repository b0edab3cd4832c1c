"""A user of Redis for each role: a whole system works with their rights, and no role can do what is not its own."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from integration.test_flower import USER, Flower

from checks.testbed.database import ask
from checks.testbed.processes import ROOT, Program, System
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from pipeline import acl, wiring
from pipeline.control_store.rights import ALL, INGEST, OPERATOR, USES, WORKER, Role, commands_of
from pipeline.control_store.rights_check import check_rights, sample_of
from pipeline.errors import LogIndeterminateError, LogUnavailableError, SettingsError, StoreUnavailableError
from pipeline.log.redis_streams import RedisStreamsLog
from pipeline.names import PauseReason
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import Server, free_port
from support.traffic import event

EVENTS = 300


@dataclass
class Rig:
    """Two servers whose users are those of the table, and the settings with each user."""

    settings: Settings
    control: Any  # a client, as the administrator
    log: Any
    folder: Path

    def of(self, role: Role) -> Settings:
        changed = {
            name: getattr(self.settings, name).replace("redis://", f"redis://{acl.USERS}{role.value}:p%20{role.value}@")
            for name in ("redis_url", "event_log_url")
        }
        return replace(self.settings, **changed)

    def client(self, role: Role, *, log: bool = False) -> Any:
        settings = self.of(role)
        return redis.Redis.from_url(settings.event_log_url if log else settings.redis_url, decode_responses=True)

    def denied(self) -> list[tuple[str, str, str]]:
        """What any user was denied, on both servers."""
        return [
            (entry["username"], entry["reason"], entry["object"])
            for server in (self.control, self.log)
            for entry in server.acl_log()
        ]

    def forget_denied(self) -> None:
        for server in (self.control, self.log):
            server.acl_log_reset()


@pytest.fixture
def rig(settings: Settings, own_control_redis: Server, own_log_redis: Server, tmp_path: Path) -> Iterator[Rig]:
    passwords = tmp_path / "passwords"
    passwords.mkdir()
    for role in ALL:
        (passwords / f"{acl.USERS}{role.value}").write_text(f"p {role.value}\n")
    settings = replace(
        settings, redis_url=own_control_redis.url, event_log_url=own_log_redis.url, key_prefix="sluice:",
        regulate_seconds=0.5,
    )  # fmt: skip
    servers = []
    for name, server in (("control", own_control_redis), ("log", own_log_redis)):
        admin: Any = redis.Redis.from_url(server.url, decode_responses=True)
        for line in acl.user_lines(settings, name, ALL, passwords=passwords, is_file=False):
            assert admin.execute_command(*line.split(" "))
        servers.append(admin)
    yield Rig(settings, servers[0], servers[1], tmp_path)
    for admin in servers:
        admin.close()


@pytest.mark.parametrize("role", ALL)
def test_a_user_with_the_printed_rules_lacks_nothing(rig: Rig, role: Role) -> None:
    assert check_rights(rig.of(role), role) == ([], [])
    assert rig.denied() == []


def test_a_missing_right_is_named_with_the_line_that_gives_it(rig: Rig) -> None:
    # Given a user that lacks a command on one server, and a key on the other
    user = f"{acl.USERS}ingest"
    rig.control.execute_command("ACL", "SETUSER", user, "-hincrbyfloat")
    [line] = acl.user_lines(rig.settings, "log", [INGEST], passwords=None, is_file=False)
    rig.log.execute_command(*line.replace("~sluice:log:ends ", "").split(" "))
    # When a process starts
    problems, unasked = check_rights(rig.of(INGEST), INGEST)
    # Then it names exactly these
    assert unasked == []
    assert [problem.partition(". ")[2] for problem in problems] == [
        f"As an administrator of that Redis: ACL SETUSER {user} +hincrbyfloat (docs/redis-acl.md)",
        f"As an administrator of that Redis: ACL SETUSER {user} ~sluice:log:ends (docs/redis-acl.md)",
    ]
    with pytest.raises(SettingsError, match="lacks rights of the role ingest"):
        wiring.check_redis(rig.of(INGEST), "ingest")
    # And with these lines nothing is missing
    for server, problem in zip((rig.control, rig.log), problems, strict=True):
        server.execute_command(*problem[problem.index("ACL SETUSER") :].removesuffix(" (docs/redis-acl.md)").split(" "))
    wiring.check_redis(rig.of(INGEST), "ingest")


def test_redis_understands_each_question_about_a_right(control_redis: Server) -> None:
    # One that it refuses as a wrong call counts as a command that this Redis does not have: then no right is missing
    with redis.Redis.from_url(control_redis.url, decode_responses=True) as client:
        for command in sorted({one for use in USES for one in commands_of(use)}):
            words = sample_of(command).format(key="k", channel="c").split()
            assert client.execute_command("ACL", "DRYRUN", "default", *words) == "OK", command


def test_processes_refuse_to_start_as_the_user_of_another_role(rig: Rig) -> None:
    celery = ["celery", "-A", "tasks.app"]
    programs = [
        (INGEST, OPERATOR, ["ingest"], 2),
        (WORKER, OPERATOR, [*celery, "worker", "-Q", "control", "-n", "c@h", "--concurrency", "1"], 1),
        (WORKER, OPERATOR, [*celery, "beat", f"--pidfile={rig.folder / 'beat.pid'}"], 1),
        (OPERATOR, INGEST, [*celery, "flower", "--conf=monitoring/flowerconfig.py"], 1),
    ]
    for number, (role, user, words, status) in enumerate(programs):
        program = Program(f"refused-{number}", words, rig.of(user), rig.folder).start()
        try:
            wait_until(lambda one=program: not one.is_running, "it ends")
        finally:
            assert program.stop() == status
        assert f"the user sluice-{user.value} of REDIS_URL lacks rights of the role {role.value}" in program.log()
        assert "Traceback" not in program.log()


def test_a_user_that_may_not_ask_is_not_checked(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for server in (rig.control, rig.log):
        server.execute_command("ACL", "SETUSER", f"{acl.USERS}ingest", "-acl|dryrun", "-hgetall")
    wiring.check_redis(rig.of(INGEST), "ingest")
    assert [record.message.split(":")[0] for record in caplog.records if "not checked" in record.message] == [
        f"the rights of the user of {name} are not checked (docs/redis-acl.md)"
        for name in ("REDIS_URL", "EVENT_LOG_URL")
    ]
    # And the command does not say that no right is missing
    missing, unasked = check_rights(rig.of(INGEST), INGEST)
    assert missing == []
    assert "the user of REDIS_URL has no right for this" in unasked[0]
    assert "the event log (Redis) refuses: the user of EVENT_LOG_URL has no right for this" in unasked[1]


def test_what_the_page_says_that_redis_can_not_forbid(rig: Rig) -> None:
    stream = "sluice:log:stream:0"
    for text in ("one", "two"):
        rig.log.xadd(stream, {"v": text})
    for role in (INGEST, OPERATOR):
        with rig.client(role, log=True) as client:
            assert "two" in str(client.execute_command("XINFO", "STREAM", stream, "FULL"))
    with rig.client(INGEST, log=True) as client:
        client.xadd(stream, {"v": "three"}, maxlen=1, approximate=False)
    assert rig.log.xlen(stream) == 1


def test_a_server_may_have_a_user_for_the_control_state_and_another_for_the_log(rig: Rig) -> None:
    # Given one server, and a user for each of both, without the rights of the other
    [line] = acl.user_lines(rig.settings, "log", [INGEST], passwords=None, is_file=False)
    rig.control.execute_command(*line.replace(f"{acl.USERS}ingest", "appender on >pw").split(" "))
    one = rig.of(INGEST).redis_url
    both = replace(rig.of(INGEST), event_log_url=rig.settings.redis_url.replace("redis://", "redis://appender:pw@"))
    # Then each needs its own rights
    assert check_rights(both, INGEST) == ([], [])
    # And a user for both needs all
    [problem], _ = check_rights(replace(both, event_log_url=one), INGEST)
    assert "+xinfo|stream" in problem


def run(settings: Settings, *words: str) -> str:
    """What a command of Sluice prints; it must succeed."""
    ended = subprocess.run(
        [sys.executable, "-m", *words], env=environ_with(settings), cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=RUN_SECONDS_MAX,
    )  # fmt: skip
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.timeout(900)  # a whole system, and commands
def test_a_whole_system_works_and_no_role_can_do_what_is_not_its_own(rig: Rig) -> None:
    # Given a system whose processes have the users of their roles, and Flower
    settings = replace(rig.settings, ingest_port=free_port())
    rig.settings = settings
    system = System(settings, rig.folder)
    for program, role in zip(system.programs, (INGEST, WORKER, WORKER, WORKER), strict=True):
        program.environ = {"REDIS_URL": rig.of(role).redis_url, "EVENT_LOG_URL": rig.of(role).event_log_url}
    operator = rig.of(OPERATOR)
    flower = None
    try:
        system.start()
        flower = Flower(operator, rig.folder, FLOWER_BASIC_AUTH=USER)
        # When events are sent
        body = json.dumps([event(number, run="users") for number in range(EVENTS)]).encode()
        request = urllib.request.Request(f"{system.url}/api/logs", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
            assert answer.status == 202
        # Then they are stored
        count = "SELECT count(*) FROM log_events"
        system.wait(lambda: ask(settings.database_url, count) == [(EVENTS,)], "all are stored")
        # And the operator can do what operators do
        celery = ("celery", "-A", "tasks.app")
        control = (*celery, "control", "--timeout", str(WAIT_SECONDS_MAX))  # the first answer ends the wait
        assert "Consumption is paused" in run(operator, *control, "pause_consumption", "a", "test")
        system.wait(lambda: system.health()["consumption"] == "paused", "ingest has heard of it")
        assert "Lifted by" in run(operator, *control, "resume_consumption")
        assert "At most 100/s" in run(operator, *control, "set_rate_limit", "100", "60")
        run(operator, *control, "clear_rate_limit")
        # A busy machine makes a call to Redis late now and then, which is a reason of health until the next tick
        for words in ((*celery, "inspect", "sluice"), ("pipeline", "status")):
            wait_until(lambda words=words: "HEALTHY" in run(operator, *words), " ".join(words))
        assert "slc_" in run(operator, *control, "keys_create", "shop")
        wait_until(lambda: len(flower.workers()) == 2, "Flower sees both workers")
        assert "batches" in flower.get("/broker")
        for path in ("/metrics", "/", "/api/logs/health"):
            urllib.request.urlopen(f"{system.url}{path}", timeout=WAIT_SECONDS_MAX).close()
        # And no process was denied anything
        assert rig.denied() == []
    finally:
        if flower is not None:
            flower.stop()
        system.stop()
    assert rig.denied() == []
    _ingest_can_not(rig)
    _operators_can_not(rig)
    _workers_can_not(rig)


def _refused(client: Any, *command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def _ingest_can_not(rig: Rig) -> None:
    """Pause, set a rate, send tasks or commands, read events, or what an administrator can."""
    store = wiring.make_control_store(rig.of(INGEST))
    assert store.state().pauses == ()
    with pytest.raises(StoreUnavailableError, match="no right"):
        store.pause(PauseReason.OPERATOR, actor="eve", why="")
    with pytest.raises(StoreUnavailableError, match="no right"):
        store.set_override(1.0, until=store.state().time + 60, actor="eve", why="")
    with rig.client(INGEST) as client:
        script = "return redis.call('HSET', ARGV[1], 'operator', '{}')"
        _refused(client, "HSET", "sluice:pause", "operator", "{}")
        with pytest.raises(redis.exceptions.ResponseError, match=r"can't access|No permissions|NOPERM|ACL"):
            client.execute_command("EVAL", script, "0", "sluice:pause")
        _refused(client, "PUBLISH", "sluice:/0.celery.pidbox", "{}")
        _refused(client, "LPUSH", "sluice:batches", "{}")
        _refused(client, "HSET", "sluice:keys", "version", "x")
        _refused(client, "FLUSHALL")
    with rig.client(INGEST, log=True) as client:
        _refused(client, "XREAD", "STREAMS", "sluice:log:stream:0", "0")
        _refused(client, "DEL", "sluice:log:stream:0")
        _refused(client, "FLUSHALL")


def _operators_can_not(rig: Rig) -> None:
    with rig.client(OPERATOR) as client:
        _refused(client, "HGETALL", "sluice:keys")
        _refused(client, "HSET", "sluice:pause", "operator", "{}")
        _refused(client, "LPUSH", "sluice:batches", "{}")
        _refused(client, "CONFIG", "GET", "requirepass")
    with rig.client(OPERATOR, log=True) as client:
        _refused(client, "XREAD", "STREAMS", "sluice:log:stream:0", "0")
        _refused(client, "SET", "sluice:log:id", "x")


def _workers_can_not(rig: Rig) -> None:
    log = RedisStreamsLog(rig.of(WORKER), lambda *_, **__: {})
    with pytest.raises((LogUnavailableError, LogIndeterminateError)):
        log.append([(0, b"{}")])
    log.close()
    for is_log in (False, True):
        with rig.client(WORKER, log=is_log) as client:
            _refused(client, "FLUSHALL")
            _refused(client, "SHUTDOWN")
            _refused(client, "ACL", "LIST")
            _refused(client, "GET", "other:key")
