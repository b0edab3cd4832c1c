"""A setting whose name is misspelled is named at each start, and no usual variable of another program is."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stack.__main__
from pipeline.settings.misspelled import OF_OTHER_PARTS, meant_by, misspelled_in
from sluice import doctor
from sluice.findings import State
from stack import config
from stack.system import System

ROOT = Path(__file__).parents[2]
# Of shells, desktops, other programs, images and orchestrators. They are near to ours, or usual.
OF_OTHERS = """
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY BROKER_URL CELERY_BROKER_URL CI COLORTERM DATABASE_HOST DATABASE_NAME
    DATABASE_PASSWORD DATABASE_PORT DATABASE_USER DB_URL DBUS_SESSION_BUS_ADDRESS DISPLAY DJANGO_SETTINGS_MODULE
    DOCKER_HOST EDITOR ELASTICSEARCH_URL FLASK_APP FLASK_ENV GITHUB_TOKEN GOPATH GPG_TTY GRAFANA_PORT HISTSIZE HOME
    HOSTNAME HTTPS_PROXY HTTP_PROXY INVOCATION_ID JAVA_HOME JAVA_OPTS JOURNAL_STREAM KAFKA_ADVERTISED_LISTENERS
    KAFKA_BROKER KAFKA_BROKERS KAFKA_HEAP_OPTS KAFKA_HOME KAFKA_HOST KAFKA_LISTENERS KAFKA_LOG_DIRS KAFKA_NODE_ID
    KAFKA_OPTS KAFKA_PROCESS_ROLES KAFKA_TOPIC KAFKA_URL KAFKA_USERNAME KAFKA_VERSION KUBERNETES_PORT
    KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT LANG LC_ALL LOGFORMAT LOGLEVEL LOGNAME LOGURU_FORMAT LOGURU_LEVEL
    LOG_DIR LOG_FILE LOG_LEVEL LOG_PATH LS_COLORS MAIL METRICS_ADDR METRICS_PORT NODE_ENV NO_PROXY OLDPWD
    OTEL_EXPORTER_OTLP_ENDPOINT OTEL_SERVICE_NAME PAGER PATH PGDATABASE PGHOST PGPASSWORD PGPORT PGUSER
    PIP_INDEX_URL PORT POSTGRESQL_PORT
    POSTGRES_DB POSTGRES_HOST POSTGRES_HOST_AUTH_METHOD POSTGRES_PASSWORD POSTGRES_USER
    PROMETHEUS_HOST PROMETHEUS_MULTIPROC_DIR PS1 PWD PYTHONPATH PYTHONUNBUFFERED RATE_LIMIT RATE_LIMIT_MAX REDIS_DB
    REDIS_HOST REDIS_PASSWORD REDIS_SENTINELS REDIS_SERVICE_HOST REDIS_SERVICE_PORT REDIS_USER REDIS_VERSION
    REQUESTS_CA_BUNDLE RESULT_BACKEND SECRET_KEY SENTRY_DSN SERVER_PORT SHELL SHLVL SQLALCHEMY_DATABASE_URI
    SSH_AUTH_SOCK SSL_CERT_DIR SSL_CERT_FILE TERM TMPDIR TZ USER USERNAME VIRTUAL_ENV WEB_CONCURRENCY WORKERS
    XDG_CONFIG_HOME XDG_DATA_HOME XDG_RUNTIME_DIR
"""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RATE_MX", "RATE_MAX"),
        ("RATE_AMX", "RATE_MAX"),
        ("RATEMAX", "RATE_MAX"),
        ("rate_max", "RATE_MAX"),
        ("SLUICE_RATE_MAX", "RATE_MAX"),
        ("DATABSE_URL", "DATABASE_URL"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("DATABASE_URL_FLIE", "DATABASE_URL_FILE"),
        ("DRAIN_MAX", "DRAINS_MAX"),
        ("RETENTION_DAY", "RETENTION_DAYS"),
        ("INGEST_PROCESES", "INGEST_PROCESSES"),  # of ./run.sh
        ("RATE_MAX_FILE", "RATE_MAX"),  # only a secret can be in a file
    ],
)
def test_a_misspelled_setting_is_named_with_the_one_that_was_meant(name: str, meant: str) -> None:
    assert meant_by(name) == meant
    line = misspelled_in({name: "hunter2", "HOME": "/", "RATE_MIN": "5"})
    assert line is not None
    assert line.endswith(f": {name} (perhaps {meant})")
    assert misspelled_in({name: " "}) is None  # it sets nothing


def test_every_name_with_one_letter_less_is_named() -> None:
    for name in ("EVENT_LOG_URL", "KEY_PREFIX", "OPERATOR_PASSWORD", "LOG_PARTITIONS", "RATE_MIN"):
        for place in range(len(name)):
            assert meant_by(name[:place] + name[place + 1 :]) is not None, (name, place)


def test_variables_of_other_programs_and_parts_are_not_named() -> None:
    given = [*OF_OTHERS.split(), *OF_OTHER_PARTS]
    assert [name for name in given if meant_by(name) not in (None, name)] == []


def test_addresses_that_kubernetes_sets_are_not_named() -> None:
    # Given a service that is called sluice-ingest
    assert misspelled_in({"SLUICE_INGEST_PORT": "tcp://10.96.0.10:8080"}) is None
    assert misspelled_in({"SLUICE_INGEST_PORT": "8080"}) is not None


def test_names_that_compose_and_its_env_file_read_are_known() -> None:
    text = "".join(path.read_text() for path in (ROOT / "docker-compose.yml", ROOT / "deploy/compose/tls.yml"))
    names = re.findall(r"\$\{(\w+)", text) + re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.M)
    assert "RATE_MAX" in names
    assert [name for name in names if meant_by(name) is not None] == []


def test_names_that_run_sh_reads_are_known() -> None:
    source = (ROOT / "stack" / "config.py").read_text()
    names = set(re.findall(r"\"([A-Z][A-Z0-9_]+)\"", source)) | set(config._PORTS)
    names -= {"PATH"}  # of the shell
    assert "PROMETHEUS_SECONDS" in names
    near = {meant_by(name) for name in names}
    assert near == {None}
    # A name of one letter more would be named, so each of them is known
    unknown = [name for name in names if meant_by(f"{name}X") is None]
    assert unknown == []


PROGRAMS = {
    "ingest": ("-m", "ingest"),
    "celery": ("-c", "import tasks.app"),
    "migrate": ("-m", "pipeline", "migrate"),
    "keys": ("-m", "tasks.keys", "list"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_names_it_in_one_line_and_goes_on(program: str) -> None:
    # Given a setting that ends the program after that line
    environ = {**os.environ, "RATE_MX": "hunter2", "RATE_MIN": "x"}
    said = subprocess.run(
        [sys.executable, *PROGRAMS[program]], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    [line] = [line for line in said.stderr.splitlines() if "RATE_MX" in line]
    assert line.startswith(f"{program}: ignored, since no setting has such a name")
    assert "RATE_MIN='x' is not a number" in said.stderr
    assert "hunter2" not in said.stderr


def test_a_start_of_the_whole_system_names_it_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started: list[System] = []

    def up(system: System, *, detach: bool) -> int:
        started.append(system)
        return 0

    monkeypatch.setenv("SLUICE_HOME", str(tmp_path))
    monkeypatch.setenv("INGEST_PROCESES", "2")
    monkeypatch.setattr(stack.__main__, "_up", up)
    assert stack.__main__.main(["up"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("run.sh: ignored")
    assert line.endswith("INGEST_PROCESES (perhaps INGEST_PROCESSES)")
    assert len(started) == 1


@pytest.fixture
def quiet_doctor(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A doctor that examines nothing else; returns its lines about settings that are wrong."""
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: [])
    monkeypatch.setattr(doctor, "load", lambda _: None)

    def look() -> list[str]:
        return [one.line for one in doctor.look(seconds_max=1.0) if one.state is State.WRONG and "perhaps" in one.what]

    return look


def test_doctor_names_it(monkeypatch: pytest.MonkeyPatch, quiet_doctor: Callable[[], list[str]]) -> None:
    assert quiet_doctor() == []
    monkeypatch.setenv("RATE_MX", "500")
    [line] = quiet_doctor()
    assert "RATE_MX (perhaps RATE_MAX)" in line


def test_doctor_names_it_in_the_file_that_compose_reads(
    monkeypatch: pytest.MonkeyPatch, quiet_doctor: Callable[[], list[str]], tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "CODE", tmp_path)
    assert quiet_doctor() == []
    (tmp_path / ".env").write_text("# RATE_MNI=5\nRATE_MAX=500\nexport LAG_CRITCAL = 5\nDRAINS_MAX=\n")
    [line] = quiet_doctor()
    assert line.startswith("wrong")
    assert ".env: " in line
    assert line.count("perhaps") == 1
    assert "LAG_CRITCAL (perhaps LAG_CRITICAL)" in line
