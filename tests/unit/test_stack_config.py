"""What run.sh reads from its environment, and what it makes of it before anything is started."""

import json
import socket
import threading
from pathlib import Path

import pytest

import stack.__main__
from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.settings import Settings
from stack import surroundings
from stack.config import StackConfig, environ_of_its_own, free_base, free_ports
from stack.servers import ROOT, Server, ServerError, free_port, port_problem
from stack.system import System


def config_of(home: Path, log: str | None = None, **environ: object) -> StackConfig:
    return StackConfig.from_environ(
        log, {"SLUICE_HOME": str(home), **{name: str(value) for name, value in environ.items()}}
    )


ALWAYS = ("INGEST_PORT", "FLOWER_PORT", "CONTROL_METRICS_PORT", "BATCHES_METRICS_PORT")


def test_prometheus_runs_where_there_is_one(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "prometheus"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = str(program.parent)
    assert config_of(tmp_path, PATH=path).prometheus == str(program)
    assert "PROMETHEUS_PORT" in config_of(tmp_path, PATH=path).ports_used
    assert config_of(tmp_path, PATH=path, PROMETHEUS="no").prometheus is None
    assert config_of(tmp_path, PATH="/nowhere").prometheus is None
    with pytest.raises(ServerError, match="no prometheus on the PATH"):
        config_of(tmp_path, PATH="/nowhere", PROMETHEUS="yes")
    with pytest.raises(ServerError, match="none of auto, yes, no"):
        config_of(tmp_path, PROMETHEUS="perhaps")


def test_servers_of_ones_own_are_used(tmp_path: Path) -> None:
    config = config_of(tmp_path, DATABASE_URL="postgresql://db/x", KAFKA_BOOTSTRAP_SERVERS="k1:9092")
    assert config.log == "kafka"
    assert config.given == {"DATABASE_URL": "postgresql://db/x", "EVENT_LOG_URL": "kafka://k1:9092"}
    assert set(config.ports_used) == {*ALWAYS, "REDIS_PORT"}


def test_each_log_has_its_ports(tmp_path: Path) -> None:
    assert set(config_of(tmp_path, "redis").ports_used) == {
        *ALWAYS,
        *("POSTGRES_PORT", "REDIS_PORT", "LOG_REDIS_PORT"),
    }
    assert set(config_of(tmp_path, "kafka").ports_used) == {
        *ALWAYS,
        *("POSTGRES_PORT", "REDIS_PORT", "KAFKA_PORT", "KAFKA_CONTROLLER_PORT"),
    }


@pytest.mark.parametrize(
    ("remembered", "environ", "log"),
    [
        (None, {}, "redis"),
        ("kafka", {}, "kafka"),
        ("redis", {}, "redis"),
        ("half a wo", {}, "redis"),
        ("kafka", {"EVENT_LOG_URL": "redis://elsewhere"}, "redis"),
        ("redis", {"EVENT_LOG_URL": "kafka://k1:9092"}, "kafka"),
        ("redis", {"EVENT_LOG_URL": "kafka+ssl://k1:9093"}, "kafka"),
        ("redis", {"KAFKA_BOOTSTRAP_SERVERS": "k1:9092"}, "kafka"),
    ],
)
def test_without_a_choice_the_log_is_what_urls_or_the_last_start_say(
    tmp_path: Path, remembered: str | None, environ: dict[str, str], log: str
) -> None:
    if remembered is not None:
        (tmp_path / "log").write_text(remembered + "\n")
    assert config_of(tmp_path, **environ).log == log


def test_the_addresses_of_an_earlier_start_are_not_somebody_elses_servers(tmp_path: Path) -> None:
    # Given a shell with `./run.sh env` of a start on other ports
    ours = {"DATABASE_URL": "postgresql://sluice@127.0.0.1:7001/sluice", "REDIS_URL": "redis://127.0.0.1:7002/0"}
    (tmp_path / "running.json").write_text(json.dumps({"urls": ours, "own": list(ours.values())}))
    # Then they do not keep the servers from being started, while another address does
    shell = {**ours, "EVENT_LOG_URL": "redis://elsewhere:6379/0"}
    assert config_of(tmp_path, **shell).given == {"EVENT_LOG_URL": "redis://elsewhere:6379/0"}
    # And nor do those of a start on the ports of now, after the data was deleted
    (tmp_path / "running.json").unlink()
    now = {
        "DATABASE_URL": "postgresql://sluice@127.0.0.1:5433/sluice",
        "REDIS_URL": "redis://127.0.0.1:6381/0",
        "EVENT_LOG_URL": "kafka://127.0.0.1:9093",
    }
    assert config_of(tmp_path, "redis", **now).given == {}


def test_several_ingest_processes_have_a_metrics_port_each(tmp_path: Path) -> None:
    assert config_of(tmp_path, INGEST_PROCESSES=3, INGEST_METRICS_PORT=9500).metrics_ports == [9500, 9501, 9502]
    assert config_of(tmp_path, INGEST_PROCESSES=1, INGEST_METRICS_PORT=9500).metrics_ports == []


def test_a_port_for_operators_is_one_of_its_ports_and_prometheus_needs_no_password(tmp_path: Path) -> None:
    config = config_of(tmp_path, OPERATOR_PORT="8081")
    assert config.has_ingest_keys is False
    assert config_of(tmp_path, INGEST_KEYS="yes").has_ingest_keys is True
    assert (config.operator_host, config.ports_used["OPERATOR_PORT"]) == ("127.0.0.1", 8081)
    assert config.metrics_ports == [9101]
    assert "OPERATOR_PORT" not in config_of(tmp_path, OPERATOR_PORT="0").ports_used
    for name in ("OPERATOR_PASSWORD", "OPERATOR_PASSWORD_FILE"):
        config = config_of(tmp_path, **{name: "x", "INGEST_HOST": "0.0.0.0", "INGEST_KEYS": "yes"})
        assert (config.has_operator_password, config.metrics_ports) == (True, [9101])
        assert "OPERATOR_PORT" not in config.ports_used


def test_flower_stays_on_loopback_when_ingest_is_opened(tmp_path: Path) -> None:
    config = config_of(tmp_path, INGEST_HOST="0.0.0.0", INGEST_OPEN="yes", OPERATOR_PORT="8081")
    assert (config.host, config.flower_host) == ("0.0.0.0", "127.0.0.1")


@pytest.mark.parametrize(
    ("environ", "log", "said"),
    [
        ({"INGEST_PORT": "http"}, None, "INGEST_PORT='http' is not a number from 1 to 65535"),
        ({"INGEST_PORT": "65536"}, None, "INGEST_PORT='65536'"),
        ({"INGEST_PORT": "²"}, None, "INGEST_PORT='²'"),
        ({"INGEST_PROCESSES": "0"}, None, "INGEST_PROCESSES='0' is not a number from 1 to 64"),
        ({"INGEST_HOST": "0.0.0.0"}, None, "set INGEST_KEYS=yes"),
        ({"INGEST_HOST": "::", "INGEST_OPEN": "no"}, None, "or INGEST_OPEN=yes"),
        ({"INGEST_HOST": "::", "INGEST_KEYS": "yes"}, None, "INGEST_HOST=:: .* set OPERATOR_PORT"),
        ({"OPERATOR_HOST": "0.0.0.0", "OPERATOR_PORT": "8081"}, None, "OPERATOR_HOST=0.0.0.0 .* set OPERATOR_PASSWORD"),
        ({"OPERATOR_PORT": "page"}, None, "OPERATOR_PORT='page' is not a number"),
        ({"EVENT_LOG_URL": "redis://x"}, "kafka", "contradict"),
        ({"EVENT_LOG_URL": "kafka://x"}, "redis", "contradict"),
        ({"DATABASE_URL_FILE": "/run/secrets/x"}, None, "DATABASE_URL_FILE can't be used here: .* in DATABASE_URL"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    tmp_path: Path, environ: dict[str, str], log: str | None, said: str
) -> None:
    with pytest.raises(ServerError, match=said):
        config_of(tmp_path, log, **environ)


@pytest.mark.parametrize("name", ["a ;b", "a #b", "a\nb", "100%"])
def test_a_folder_that_the_supervisor_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServerError, match="can't work in a folder"):
        config_of(tmp_path / name)


def test_a_system_starts_on_linux_only_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(config_of(tmp_path, "redis", **free_ports()))
    system.check()
    monkeypatch.setattr("stack.system.sys.platform", "darwin")
    with pytest.raises(ServerError, match="Linux only, and this is darwin"):
        system.check()


def test_a_folder_that_can_t_be_made_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    system = System(config_of(tmp_path / "file" / "system", "redis", **free_ports()))
    with pytest.raises(ServerError, match=r"file/system, can't be made: Not a directory; SLUICE_HOME names another"):
        system.start(threading.Event())


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    ports = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError) as said:
            System(config_of(tmp_path, "redis", **{**ports, "REDIS_PORT": port})).check()
    assert str(said.value).startswith(
        f"REDIS_PORT={port} is taken on 127.0.0.1: set REDIS_PORT to another port, or PORT_BASE="
    )


@pytest.mark.parametrize(
    ("name", "host_setting"),
    [
        ("INGEST_METRICS_PORT", "METRICS_HOST"),
        ("CONTROL_METRICS_PORT", "METRICS_HOST"),
        ("OPERATOR_PORT", "OPERATOR_HOST"),
    ],
)
def test_a_port_is_looked_for_on_the_address_of_its_listener(tmp_path: Path, name: str, host_setting: str) -> None:
    ports = {**free_ports(), "INGEST_METRICS_PORT": str(free_port()), "OPERATOR_PORT": str(free_port())}
    public = {"INGEST_HOST": "127.0.0.3", host_setting: "127.0.0.2"}
    with socket.create_server(("127.0.0.2", 0)) as taken:
        ports[name] = str(taken.getsockname()[1])
        with pytest.raises(ServerError, match=f"{name}={ports[name]} is taken on 127.0.0.2: "):
            System(config_of(tmp_path, "redis", **ports, **public)).check()


def test_prometheus_scrapes_where_metrics_are_served(tmp_path: Path) -> None:
    def targets(**environ: str) -> list[str]:
        system = System(config_of(tmp_path, "redis", PATH="", **environ))
        program = system._prometheus("prometheus", "http://127.0.0.1:8080/runbooks")
        assert program.environ == {"GOMAXPROCS": "1"}
        jobs = json.loads((tmp_path / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
        return [target for job in jobs for target in job["static_configs"][0]["targets"]]

    workers = ["127.0.0.1:9111", "127.0.0.1:9112"]
    assert targets() == ["127.0.0.1:8080", *workers]
    assert targets(METRICS_HOST="0.0.0.0") == ["127.0.0.1:8080", *workers]
    operators = {"OPERATOR_PORT": "8081", "INGEST_HOST": "127.0.0.3"}
    assert targets(**operators) == ["127.0.0.1:9101", *workers]
    assert targets(**operators, METRICS_HOST="127.0.0.2") == ["127.0.0.2:9101", "127.0.0.2:9111", "127.0.0.2:9112"]
    assert targets(INGEST_HOST="127.0.0.3") == ["127.0.0.3:8080", *workers]
    assert targets(INGEST_HOST="::1") == ["[::1]:8080", *workers]


def test_a_port_that_two_settings_want_is_named_with_both(tmp_path: Path) -> None:
    ports = free_ports()
    twice = {**ports, "FLOWER_PORT": ports["INGEST_PORT"]}
    with pytest.raises(ServerError, match=f"FLOWER_PORT={ports['INGEST_PORT']} is INGEST_PORT's port too"):
        System(config_of(tmp_path, "redis", **twice)).check()


def test_an_address_that_is_not_this_machines_is_not_called_taken() -> None:
    problem = port_problem("192.0.2.1", free_port())
    assert problem is not None
    assert "Cannot assign requested address" in problem


def test_a_system_of_its_own_does_not_know_the_servers_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a shell with the addresses of a running system
    given = {"DATABASE_URL": "postgresql://live/x", "REDIS_URL": "redis://live", "EVENT_LOG_URL": "redis://live/1"}
    for name, url in given.items():
        monkeypatch.setenv(name, url)
    # When a measurement makes a system of its own
    with environ_of_its_own(SLUICE_HOME="/tmp/its-own") as ours:
        config = StackConfig.from_environ(None)
        # Then none of them is used
        assert config.given == {}
        assert config.home == Path("/tmp/its-own")
        assert config.ports["INGEST_PORT"] == int(ours["INGEST_PORT"]) != 8080
    # And afterwards the shell's variables are as they were
    assert StackConfig.from_environ(None).given == given


def test_a_system_of_its_own_is_on_the_loopback_address_whatever_the_shell_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a shell with the settings of a public system, whose clients need keys and TLS
    public = {
        "INGEST_HOST": "0.0.0.0", "INGEST_KEYS": "yes", "INGEST_TLS_CERT": "/c.pem", "INGEST_TLS_KEY": "/k.pem",
        "OPERATOR_PORT": "8081", "OPERATOR_HOST": "0.0.0.0", "OPERATOR_PASSWORD_FILE": "/p", "METRICS_HOST": "0.0.0.0",
        "INGEST_CORS_ORIGINS": "*",
    }  # fmt: skip
    for name, value in public.items():
        monkeypatch.setenv(name, value)
    # When a measurement makes a system of its own, Then it has none of them
    with environ_of_its_own(SLUICE_HOME="/tmp/its-own"):
        config = StackConfig.from_environ(None)
        assert (config.host, config.has_operator_password, config.metrics_ports) == ("127.0.0.1", False, [])
        assert Settings.from_environ().ingest_keys is False
        assert Settings.from_environ().ingest_tls_cert == ""


def test_variables_of_other_programs_are_cleared_and_ours_are_kept() -> None:
    ours = {"PATH": "/bin", "HOME": "/h", "RATE_MAX": "5", "KEY_PREFIX": "x:", "FLOWER_BASIC_AUTH": "a:b", "TZ": "UTC"}
    others = {"HTTP_PROXY": "p", "no_proxy": "p", "CELERY_APP": "c", "APP": "c", "SANIC_X": "1", "LC_TIME": "de_DE"}
    libpq = {"PGSSLMODE": "require", "PGHOSTADDR": "192.0.2.1"}
    passwords = {"PGPASSWORD": "p", "PGPASSFILE": "/f"}  # for a server of the user's own
    metrics = {"PROMETHEUS_MULTIPROC_DIR": "/d", "prometheus_multiproc_dir": "/d"}
    flower = {"FLOWER_URL_PREFIX": "x", "FLOWER_ADDRESS": "0.0.0.0", "FLOWER_UNIX_SOCKET": "/s"}
    environ = {**ours, **others, **libpq, **passwords, **metrics, **flower, "FLOWER_PORT": "5556"}
    # Those that somebody may have meant for Sluice's own Flower are named
    assert surroundings.clear(environ) == sorted(flower)
    assert environ == {**ours, **passwords, **surroundings.LOCALE, "FLOWER_PORT": "5556"}


def test_settings_of_interpreters_are_cleared_for_the_programs_that_are_started() -> None:
    others = {
        "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PYTHONSAFEPATH": "1", "PYTHONINSPECT": "1",
        "PYTHONPATH": "/nowhere", "JDK_JAVA_OPTIONS": "-Xbogus",
    }  # fmt: skip
    ours = {"PYTHONHOME": "/python", "PYTHON_VERSION": "3.13", "PATH": "/bin"}
    environ = {**others, **ours}
    surroundings.clear_interpreters(environ)
    assert environ == {**ours, "PYTHONUTF8": "1"}
    # But a path that Sluice itself was found by stays
    environ = {"PYTHONPATH": f"/nowhere:{ROOT}"}
    surroundings.clear_interpreters(environ)
    assert environ["PYTHONPATH"] == f"/nowhere:{ROOT}"


@pytest.mark.parametrize("password", ["p@ss/w%rd", "pass%00 word"])
def test_what_is_said_of_an_address_has_no_password(tmp_path: Path, password: str) -> None:
    with pytest.raises(ServerError, match="contradict each other") as raised:
        config_of(tmp_path, "kafka", EVENT_LOG_URL=f"redis://user:{password}@host:6380/0")
    assert "redis://user:***@host:6380/0" in str(raised.value)


def test_a_process_gives_no_port_twice() -> None:
    # Ports are given before their servers listen. Without that, two of 500 are the same, nearly always.
    assert len({free_port() for _ in range(500)}) == 500


def test_one_number_moves_all_ports(tmp_path: Path) -> None:
    for log in ("redis", "kafka"):
        config = config_of(tmp_path, log, PORT_BASE=18100, INGEST_PROCESSES=3, PATH="/nowhere")
        used = config.ports_used
        assert used["INGEST_PORT"] == 18100
        assert len(set(used.values())) == len(used)
        assert set(used.values()) <= set(range(18100, 18114))
        # The numbers by which others scrape them
        assert (used["INGEST_METRICS_PORT"], used["INGEST_METRICS_PORT + 2"]) == (18110, 18112)
    # And one that is set stays
    moved = config_of(tmp_path, "redis", PORT_BASE=18100, FLOWER_PORT=5000).ports
    assert (moved["INGEST_PORT"], moved["FLOWER_PORT"]) == (18100, 5000)


@pytest.mark.parametrize("base", ["0", "65535", "here"])
def test_a_base_without_room_for_all_ports_is_refused(tmp_path: Path, base: str) -> None:
    with pytest.raises(ServerError, match="PORT_BASE="):
        config_of(tmp_path, "redis", PORT_BASE=base)


def test_the_base_that_is_suggested_is_free(tmp_path: Path) -> None:
    config = config_of(tmp_path, "redis", PORT_BASE=free_base(), PATH="/nowhere")
    assert not any(port_problem("127.0.0.1", port) for port in config.ports_used.values())


def test_a_system_of_its_own_does_not_take_the_base_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT_BASE", "18100")
    with environ_of_its_own(SLUICE_HOME=str(tmp_path)):
        assert StackConfig.from_environ("redis").ports["INGEST_METRICS_PORT"] == 9101


@pytest.mark.parametrize(
    ("words", "policy"), [([], "bands"), (["--policy", "bands"], "bands"), (["--policy", "drain-time"], "drain_time")]
)
def test_the_policy_of_the_command_line_is_that_of_the_system(
    words: list[str], policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"SLUICE_HOME": str(tmp_path), "PATH": "/nowhere", "PROMETHEUS": "no"}
    monkeypatch.setattr("os.environ", environ)
    started: list[str] = []

    def up(system: System, *, detach: bool) -> int:
        started.append(Settings.from_environ(environ).rate_policy)
        return 0

    monkeypatch.setattr(stack.__main__, "_up", up)
    assert (stack.__main__.main(words), started) == (0, [policy])


def test_a_start_that_waits_for_what_a_killed_server_left_ends_with_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server whose repair waits, as PostgreSQL's does for orphaned children
    begun, ended = threading.Event(), threading.Event()

    def wait() -> list[str]:
        begun.set()
        ended.wait(WAIT_SECONDS_MAX)
        return []

    server = Server("postgres", [], tmp_path / "log", "", 0, lambda: True, repair=wait)
    system = System(config_of(tmp_path, "redis", PORT_BASE=free_base()))
    monkeypatch.setattr(system, "_servers", lambda: {"postgres": server})
    interrupted = threading.Event()

    def interrupt() -> None:
        begun.wait(WAIT_SECONDS_MAX)
        interrupted.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    # When Ctrl-C comes meanwhile, then the start ends
    try:
        with pytest.raises(ServerError, match="interrupted while starting"):
            system.start(interrupted)
        assert not ended.is_set()
    finally:
        ended.set()
        thread.join()


def hz_of(server: Server) -> str:
    return server.command[server.command.index("--hz") + 1]


def test_redis_servers_of_an_idle_system_wake_up_twice_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System(config_of(tmp_path, DATABASE_URL="postgresql://db/x"))
    for wanted, of_log in ((None, "2"), ("0", "2"), ("1", "4")):
        if wanted is None:
            monkeypatch.delenv("LOG_REPLICAS_MIN", raising=False)
        else:
            monkeypatch.setenv("LOG_REPLICAS_MIN", wanted)
        # The wait for the disk of a replica ends with that timer, and an append allows it 0.3 s
        servers = system._servers()
        assert (hz_of(servers["redis-control"]), hz_of(servers["redis-log"])) == ("2", of_log)
