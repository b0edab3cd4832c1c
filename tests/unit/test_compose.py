"""docker-compose.yml, as Debian's docker-compose reads it: settings that exist, limits, and who reaches what."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from checks.testbed.processes import ROOT
from ingest.server import refuse_public
from pipeline.settings import Settings

SLUICE = ("ingest", "worker", "control", "beat", "flower")
ONCE = "migrate"  # it runs at each start, and ends
SERVERS = ("postgres", "redis-control", "redis-log", "kafka")
WATCHERS = ("prometheus", "grafana")
SECRETS = {
    "POSTGRES_PASSWORD": "pg-secret",
    "POSTGRES_APP_PASSWORD": "app-secret",
    "REDIS_PASSWORD": "redis-secret",
    "OPERATOR_PASSWORD": "operator-secret",
    "FLOWER_BASIC_AUTH": "ann:flower-secret",
    "GRAFANA_ADMIN_PASSWORD": "grafana-secret",
}
Missing = Callable[[str], None]


def _environment(folder: Path, changes: dict[str, str]) -> None:
    """A copy of .env.example, filled in."""
    text = (ROOT / ".env.example").read_text()
    for name, value in changes.items():
        text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert count == 1, f".env.example does not have {name} once"
    (folder / ".env").write_text(text)
    shutil.copy(ROOT / "docker-compose.yml", folder)


def _config(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker-compose", "config"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},  # a variable of this machine's would come before .env
    )


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory, missing: Missing) -> dict[str, Any]:
    if shutil.which("docker-compose") is None:
        missing("there is no docker-compose (Debian: docker-compose)")
    folder = tmp_path_factory.mktemp("compose")
    _environment(folder, SECRETS)
    said = _config(folder)
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = yaml.safe_load(said.stdout)
    return found


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.mark.parametrize(("rate_max", "expected"), [("", 50_000.0), ("3000", 3000.0)])
def test_the_rate_policy_of_env_reaches_every_program(
    tmp_path: Path, compose: dict[str, Any], rate_max: str, expected: float
) -> None:
    _environment(tmp_path, {**SECRETS, "RATE_POLICY": "drain_time", "RATE_MAX": rate_max})
    said = _config(tmp_path)
    assert said.returncode == 0, said.stderr
    for name in ("ingest", "worker", "control", "beat"):
        given = yaml.safe_load(said.stdout)["services"][name]["environment"]
        settings = Settings.from_environ({variable: str(value) for variable, value in given.items()})
        assert (settings.rate_policy, settings.rate_max, settings.regulate_seconds) == ("drain_time", expected, 1.0)


def test_every_part_is_there(services: dict[str, Any]) -> None:
    assert set(services) == {*SLUICE, ONCE, *SERVERS, *WATCHERS}


def test_settings_are_ones_that_the_programs_know_and_take(services: dict[str, Any]) -> None:
    known = {field.name.upper() for field in fields(Settings)}
    for name in (*SLUICE, ONCE):
        given = services[name]["environment"]
        own = {variable for variable in given if name != "flower" or not variable.startswith("FLOWER_")}
        assert own <= known, f"{name}: {own - known} are no settings"
        settings = Settings.from_environ({variable: str(given[variable]) for variable in own})
        assert settings.database_url == "postgresql://sluice_app:app-secret@postgres:5432/sluice"
        owner = "postgresql://sluice:pg-secret@postgres:5432/sluice"
        assert settings.migrate_database_url == (owner if name == ONCE else ""), name
        assert settings.redis_url == "redis://:redis-secret@redis-control:6379/0"
        assert settings.event_log_url == "kafka://kafka:9092"


def test_what_env_example_sets_is_what_the_programs_take(services: dict[str, Any]) -> None:
    defaults = Settings()
    given = services["ingest"]["environment"]
    for name in ("RATE_MAX", "RATE_MIN", "LAG_DEGRADED", "LAG_CRITICAL", "LOG_PARTITIONS"):
        assert float(given[name]) == getattr(defaults, name.lower()), f"{name} is not the default"
    assert " --concurrency 6 " in services["worker"]["command"]
    assert defaults.log_partitions + 2 == 6


def test_writers_need_a_key_unless_env_says_otherwise(tmp_path: Path, services: dict[str, Any]) -> None:
    def settings(given: dict[str, Any]) -> Settings:
        return Settings.from_environ({name: str(value) for name, value in given.items()})

    shipped = settings(services["ingest"]["environment"])
    assert (shipped.ingest_host, shipped.ingest_keys, shipped.ingest_open) == ("0.0.0.0", True, False)
    _environment(tmp_path, {**SECRETS, "INGEST_KEYS": "no", "INGEST_OPEN": "yes"})
    opened = settings(yaml.safe_load(_config(tmp_path).stdout)["services"]["ingest"]["environment"])
    assert (opened.ingest_keys, opened.ingest_open) == (False, True)


def test_operators_need_their_password(services: dict[str, Any]) -> None:
    given = services["ingest"]["environment"]
    settings = Settings.from_environ({name: str(value) for name, value in given.items()})
    assert (settings.operator_host, settings.operator_port) == ("0.0.0.0", 8081)
    assert (settings.operator_password, settings.operator_open) == ("operator-secret", False)
    refuse_public(settings)


@pytest.mark.parametrize("name", SECRETS)
def test_without_a_password_nothing_starts(tmp_path: Path, services: dict[str, Any], name: str) -> None:
    _environment(tmp_path, {**SECRETS, name: ""})
    said = _config(tmp_path)
    assert said.returncode != 0
    assert "fill it in in .env" in said.stderr


def test_no_password_stands_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for line in re.findall(r"^.*(?:PASSWORD|AUTH|requirepass|redis://|postgresql://).*$", text, re.MULTILINE):
        # Only as ${NAME:?…}
        assert "${" in line, line
        assert not re.search(r"(?:PASSWORD|AUTH): [^$\s]", line), line
    example = (ROOT / ".env.example").read_text()
    for name in SECRETS:
        assert re.search(rf"^{name}=$", example, re.MULTILINE), f"{name} has a value in .env.example"


def test_only_four_are_reached_from_outside(services: dict[str, Any], compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert published == {
        "ingest": ["0.0.0.0:8080:8080/tcp", "127.0.0.1:8081:8081/tcp"],  # the second one for operators
        "flower": ["127.0.0.1:5555:5555/tcp"],  # /metrics and /healthcheck need no password
        "grafana": ["0.0.0.0:3000:3000/tcp"],
    }
    assert compose["networks"]["back"]["internal"] is True
    assert {name for name, service in services.items() if "front" in service["networks"]} == set(published)


def test_everything_is_bounded_and_starts_again(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == ("on-failure" if name == ONCE else "unless-stopped"), name
        assert service["mem_limit"], name
        assert float(service["cpus"]) > 0, name
        assert service["logging"]["options"]["max-size"], name
        assert service["healthcheck"]["test"], name  # two say that they have none
        if "build" not in service:
            tag = service["image"].rpartition(":")[2]
            assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-\w+)?", tag), f"{name}: {service['image']} moves"
    assert {name for name in services if services[name]["healthcheck"]["test"] == ["NONE"]} == {"beat", ONCE}


def test_ours_run_with_as_few_rights_as_they_need(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # These two begin as root, to own their volume, and step down.
        begins_as_root = name == "postgres" or name.startswith("redis")
        assert service.get("cap_drop") == (None if begins_as_root else ["ALL"]), name
    for name in (*SLUICE, ONCE):
        assert services[name]["read_only"] is True, name


def test_what_env_example_offers_is_used(services: dict[str, Any]) -> None:
    # A line of .env that nothing reads would be believed
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / ".env.example").read_text()
    offered = set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) - {"COMPOSE_PROFILES"}
    assert len(offered) > 10
    assert {name for name in offered if "${" + name not in text} == set()
    # and every setting that is said to be taken from there is
    for name in ("LOG_LEVEL", "LOG_PARTITIONS"):
        assert name in example
        assert name in services["worker"]["environment"]
        assert "${" + name in text


def test_data_is_on_volumes(services: dict[str, Any], compose: dict[str, Any]) -> None:
    for name in (*SERVERS, *WATCHERS):
        mounted = [volume.partition(":")[0] for volume in services[name]["volumes"]]
        assert name in mounted, name
        assert name in compose["volumes"], name


def test_what_is_mounted_is_in_the_repository(services: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    mounted = re.findall(r"^ +- \./(\S+?):", text, re.MULTILINE)
    assert len(mounted) >= 4
    for path in mounted:
        assert (ROOT / path).exists(), path


def test_who_needs_a_server_waits_until_it_is_healthy(services: dict[str, Any]) -> None:
    for name in SLUICE:
        assert services[name]["depends_on"]["redis-control"] == {"condition": "service_healthy"}, name
    for name in ("worker", "control"):
        assert services[name]["depends_on"][ONCE] == {"condition": "service_completed_successfully"}, name
    assert services[ONCE]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name, service in services.items():
        for needed in service.get("depends_on", {}):
            assert "profiles" not in services[needed], f"{name} needs {needed}, which may not be started"


def test_the_log_keeps_each_write_and_neither_server_evicts(services: dict[str, Any]) -> None:
    log, control = services["redis-log"]["command"], services["redis-control"]["command"]
    assert "--appendonly yes --appendfsync always" in log
    for command in (log, control):
        assert "--maxmemory-policy noeviction" in command
        assert re.search(r"--maxmemory \d+[mg]b", command)


def test_the_disk_under_every_store_of_events_is_watched(services: dict[str, Any]) -> None:
    control = services["control"]
    watched = control["environment"]["WATCHED_PATHS"].split(",")
    mounted = dict(volume.split(":")[:2] for volume in control["volumes"])
    assert {mounted[name] for name in ("postgres", "kafka", "redis-log", "archive")} == set(watched)
    assert all(volume.endswith(":ro") for volume in control["volumes"] if not volume.startswith("archive:"))


@pytest.mark.parametrize("url", ["", "file:///archive"])
def test_the_event_sink_of_env_reaches_every_program_that_uses_it(
    tmp_path: Path, compose: dict[str, Any], url: str
) -> None:
    # Given a sink that was selected in .env
    _environment(tmp_path, {**SECRETS, "EVENT_SINK_URL": url})
    said = _config(tmp_path)
    assert said.returncode == 0, said.stderr
    document = yaml.safe_load(said.stdout)
    for name in ("ingest", "worker", "control"):
        # Then each of these has the setting, and the folder on one volume that it may write
        service = document["services"][name]
        settings = Settings.from_environ({key: str(value) for key, value in service["environment"].items()})
        assert settings.event_sink_url == url
        mounted = dict(volume.split(":", 1) for volume in service["volumes"])
        assert mounted["archive"].removesuffix(":rw") == "/archive"
    assert "archive" in document["volumes"]
    # And the image has the mount point, so that the volume is not root's alone
    assert "RUN mkdir -m 1777 /archive\n" in (ROOT / "Dockerfile").read_text()
