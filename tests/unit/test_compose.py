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
from support.certificates import Authority, openssl_problem

pytestmark = pytest.mark.timeout(600)  # seconds of CPU, on a machine that may do other things

SLUICE = ("ingest", "worker", "control", "beat", "flower")
ONCE = "migrate"  # it runs at each start, and ends
SERVERS = ("postgres", "redis-control", "redis-log", "kafka")
WATCHERS = ("prometheus", "alertmanager", "grafana")
PROXY = "proxy"
MOUNT = "/run/secrets"
# What secrets.sh makes, and what no container gets as it is
SECRETS = (
    "database-url", "migrate-database-url", "redis-url", "event-log-url", "operator-password", "flower-basic-auth",
    "postgres-password", "redis-password", "redis.conf", "grafana-password", "alertmanager.yml",
)  # fmt: skip
PARTS = ("postgres-app-password",)
Missing = Callable[[str], None]


def _environment(folder: Path, changes: dict[str, str]) -> None:
    """A copy of .env.example with changes, and the files that compose reads."""
    text = (ROOT / ".env.example").read_text()
    for name, value in changes.items():
        text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert count == 1, f".env.example does not have {name} once"
    (folder / ".env").write_text(text)
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "deploy" / "compose", folder / "deploy" / "compose", dirs_exist_ok=True)


def _make_secrets(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [folder / "deploy" / "compose" / "secrets.sh"], capture_output=True, text=True, check=True, cwd="/"
    )


def _config(folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    files = [word for name in ("docker-compose.yml", *more) for word in ("-f", name)]
    return subprocess.run(
        ["docker-compose", *files, "config"],
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
    _environment(folder, {})
    said = _config(folder)
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = yaml.safe_load(said.stdout)
    return found


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of secrets, as secrets.sh makes it."""
    folder = tmp_path_factory.mktemp("installation")
    _environment(folder, {})
    _make_secrets(folder)
    return folder / "secrets"


def _given(service: dict[str, Any], secrets: Path) -> dict[str, str]:
    """The settings of a service of ours, with its secrets at their place. Each file is one that it gets."""
    mounted = {one["source"] for one in service["secrets"]}
    given = {}
    for name, value in service["environment"].items():
        if name.startswith(("FLOWER_", "SLUICE_FLOWER_")):
            continue
        text = str(value)
        if text.startswith(f"{MOUNT}/"):
            assert text.removeprefix(f"{MOUNT}/") in mounted, f"{name}={text}"
            text = text.replace(MOUNT, str(secrets))
        given[name] = text
    return given


def _text(secrets: Path, name: str) -> str:
    return (secrets / name).read_text().strip()


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.mark.parametrize(("rate_max", "expected"), [("", 50_000.0), ("3000", 3000.0)])
def test_the_rate_policy_of_env_reaches_every_program(
    tmp_path: Path, compose: dict[str, Any], secrets: Path, rate_max: str, expected: float
) -> None:
    _environment(tmp_path, {"RATE_POLICY": "drain_time", "RATE_MAX": rate_max})
    said = _config(tmp_path)
    assert said.returncode == 0, said.stderr
    for name in ("ingest", "worker", "control", "beat"):
        settings = Settings.from_environ(_given(yaml.safe_load(said.stdout)["services"][name], secrets))
        assert (settings.rate_policy, settings.rate_max, settings.regulate_seconds) == ("drain_time", expected, 1.0)


def test_every_part_is_there(services: dict[str, Any]) -> None:
    assert set(services) == {*SLUICE, ONCE, PROXY, *SERVERS, *WATCHERS}


def test_settings_are_ones_that_the_programs_know_and_take(services: dict[str, Any], secrets: Path) -> None:
    known = {field.name.upper() for field in fields(Settings)}
    known |= {f"{field.name.upper()}_FILE" for field in fields(Settings) if field.metadata["is_secret"]}
    application, owner, redis = (_text(secrets, f"{name}-password") for name in ("postgres-app", "postgres", "redis"))
    for name in (*SLUICE, ONCE):
        given = _given(services[name], secrets)
        assert set(given) <= known, f"{name}: {set(given) - known} are no settings"
        settings = Settings.from_environ(given)
        assert settings.database_url == f"postgresql://sluice_app:{application}@postgres:5432/sluice"
        expected = f"postgresql://sluice:{owner}@postgres:5432/sluice" if name == ONCE else ""
        assert settings.migrate_database_url == expected, name
        assert settings.redis_url == f"redis://:{redis}@redis-control:6379/0"
        assert settings.event_log_url == "kafka://kafka:9092"


def test_what_env_example_sets_is_what_the_programs_take(services: dict[str, Any]) -> None:
    defaults = Settings()
    given = services["ingest"]["environment"]
    for name in ("RATE_MAX", "RATE_MIN", "LAG_DEGRADED", "LAG_CRITICAL", "LOG_PARTITIONS", "DRAINS_MAX"):
        assert float(given[name]) == getattr(defaults, name.lower()), f"{name} is not the default"
    assert " --concurrency 6 " in services["worker"]["command"]
    assert defaults.log_partitions + 2 == 6


def test_writers_need_a_key_unless_env_says_otherwise(tmp_path: Path, services: dict[str, Any], secrets: Path) -> None:
    shipped = Settings.from_environ(_given(services["ingest"], secrets))
    assert (shipped.ingest_host, shipped.ingest_keys, shipped.ingest_open) == ("0.0.0.0", True, False)
    _environment(tmp_path, {"INGEST_KEYS": "no", "INGEST_OPEN": "yes"})
    document = yaml.safe_load(_config(tmp_path).stdout)
    opened = Settings.from_environ(_given(document["services"]["ingest"], secrets))
    assert (opened.ingest_keys, opened.ingest_open) == (False, True)


def test_operators_need_their_password(services: dict[str, Any], secrets: Path) -> None:
    settings = Settings.from_environ(_given(services["ingest"], secrets))
    assert (settings.operator_host, settings.operator_port) == ("0.0.0.0", 8081)
    assert (settings.operator_password, settings.operator_open) == (_text(secrets, "operator-password"), False)
    refuse_public(settings)


# --- Secrets ---------------------------------------------------------------------------------------------------------


def test_every_secret_is_a_file_that_is_made_and_used(
    compose: dict[str, Any], services: dict[str, Any], secrets: Path
) -> None:
    assert {path.name for path in secrets.iterdir()} == {*SECRETS, *PARTS}
    assert {name: Path(one["file"]).name for name, one in compose["secrets"].items()} == {one: one for one in SECRETS}
    assert all(Path(one["file"]).parent.name == "secrets" for one in compose["secrets"].values())
    used = {one["source"] for service in services.values() for one in service.get("secrets", [])}
    assert used == set(SECRETS)
    # And what a service names below the mount point is one that it gets
    for name, service in services.items():
        named = set(re.findall(rf"{MOUNT}/([a-z.-]+)", yaml.safe_dump(service)))
        assert named == {one["source"] for one in service.get("secrets", [])}, name


def test_secrets_are_random_long_and_for_this_folders_owner_alone(secrets: Path, tmp_path: Path) -> None:
    assert secrets.stat().st_mode & 0o777 == 0o700
    for path in secrets.iterdir():
        # Containers run as other users than the owner, and the folder keeps everybody else out
        assert path.stat().st_mode & 0o777 == 0o444, path.name
    passwords = [_text(secrets, name) for name in (*PARTS, *SECRETS) if name.endswith("-password")]
    passwords.append(_text(secrets, "flower-basic-auth").partition(":")[2])
    _environment(tmp_path, {})
    _make_secrets(tmp_path)
    passwords += [_text(tmp_path / "secrets", name) for name in (*PARTS, *SECRETS) if name.endswith("-password")]
    assert len(set(passwords)) == len(passwords) == 11
    assert all(re.fullmatch(r"[0-9a-f]{48}", one) for one in passwords)
    assert _text(secrets, "redis.conf") == f"requirepass {_text(secrets, 'redis-password')}"


def test_secrets_that_are_there_are_kept_and_those_of_an_older_env_taken_over(tmp_path: Path) -> None:
    # Given the .env of an earlier version, whose volumes have its passwords
    _environment(tmp_path, {"COMPOSE_PROFILES": "redis-log"})
    with (tmp_path / ".env").open("a") as env:
        env.write(
            "POSTGRES_PASSWORD='pg-old'\nPOSTGRES_APP_PASSWORD=app-old\nREDIS_PASSWORD=redis-old\n"
            'EVENT_LOG_URL=redis://:redis-old@redis-log:6379/0\nOPERATOR_PASSWORD="operator-old"\n'
            "FLOWER_BASIC_AUTH=ann:flower-old\nGRAFANA_ADMIN_PASSWORD=grafana-old\n"
        )
    _make_secrets(tmp_path)
    secrets = tmp_path / "secrets"
    assert _text(secrets, "migrate-database-url") == "postgresql://sluice:pg-old@postgres:5432/sluice"
    assert _text(secrets, "database-url") == "postgresql://sluice_app:app-old@postgres:5432/sluice"
    assert _text(secrets, "event-log-url") == "redis://:redis-old@redis-log:6379/0"
    assert _text(secrets, "flower-basic-auth") == "ann:flower-old"
    assert (_text(secrets, "operator-password"), _text(secrets, "grafana-password")) == ("operator-old", "grafana-old")
    # When it runs again, after the operator changed one and lost another
    (secrets / "event-log-url").chmod(0o644)
    (secrets / "event-log-url").write_text("kafka+ssl://broker.example:9093\n")
    (secrets / "redis-url").unlink()
    said = _make_secrets(tmp_path).stdout
    # Then only the lost one is made again, from the same password
    assert said == "made secrets/redis-url\n"
    assert _text(secrets, "event-log-url") == "kafka+ssl://broker.example:9093"
    assert _text(secrets, "redis-url") == "redis://:redis-old@redis-control:6379/0"


def test_the_other_log_has_its_url(tmp_path: Path) -> None:
    _environment(tmp_path, {"COMPOSE_PROFILES": "redis-log"})
    _make_secrets(tmp_path)
    password = _text(tmp_path / "secrets", "redis-password")
    assert _text(tmp_path / "secrets", "event-log-url") == f"redis://:{password}@redis-log:6379/0"


def test_no_secret_stands_in_a_file_of_the_repository_or_in_a_command() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert "requirepass" not in text
    assert not re.search(r"(?:redis|postgresql)://", text)
    for line in re.findall(r"^.*(?:PASSWORD|AUTH).*$", text, re.MULTILINE):
        assert f"{MOUNT}/" in line, line
    assert not re.search(r"PASSWORD|AUTH", (ROOT / ".env.example").read_text())
    assert "secrets/\n" in (ROOT / ".gitignore").read_text()
    assert "secrets" not in (ROOT / ".dockerignore").read_text()  # nothing but what it names goes to the builder


# --- Who is reached, and how -----------------------------------------------------------------------------------------


def test_only_these_are_reached_from_outside(services: dict[str, Any], compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert published == {
        "proxy": ["0.0.0.0:8080:8080/tcp", "127.0.0.1:8081:8081/tcp"],  # the second one for operators
        "flower": ["127.0.0.1:5555:5555/tcp"],  # /metrics and /healthcheck need no password
        "alertmanager": ["127.0.0.1:9093:9093/tcp"],  # nothing there needs a password
        "grafana": ["0.0.0.0:3000:3000/tcp"],
    }
    assert compose["networks"]["back"]["internal"] is True
    assert {name for name, service in services.items() if "front" in service["networks"]} == set(published)


def test_ingest_can_be_several(services: dict[str, Any], compose: dict[str, Any], secrets: Path) -> None:
    # Two containers can't publish one port of the host
    for name in ("ingest", "worker"):
        assert not services[name].get("ports"), name
        assert "container_name" not in services[name], name
    settings = Settings.from_environ(_given(services["ingest"], secrets))
    # The proxy has a place for as many as the settings know of
    proxy = (ROOT / "deploy" / "compose" / "haproxy.cfg").read_text()
    places = re.findall(r"^ +server-template ingest 1-(\d+) (\w+):(\d+)$", proxy, re.MULTILINE)
    assert places == [
        (str(settings.ingest_processes_max), "ingest", str(settings.ingest_port)),
        (str(settings.ingest_processes_max), "ingest", str(settings.operator_port)),
    ]
    # And what it says of a client's address is believed from it, and from nobody else
    assert "option forwardfor" in proxy
    assert settings.forwarded_field == "x-forwarded-for"
    edge = compose["networks"]["edge"]
    assert edge["internal"] is True
    assert settings.trusted_proxies == edge["ipam"]["config"][0]["subnet"]
    assert {name for name, service in services.items() if "edge" in service["networks"]} == {"proxy", "ingest"}
    mounted = [volume.split(":")[0] for volume in services["proxy"]["volumes"]]
    assert [Path(path).name for path in mounted] == ["haproxy.cfg"]
    published = {int(one.split(":")[-1].removesuffix("/tcp")) for one in services["proxy"]["ports"]}
    assert published == {int(port) for port in re.findall(r"^ +bind :(\d+)$", proxy, re.MULTILINE)}


def test_servers_on_other_hosts_are_reached_with_tls(
    tmp_path: Path, services: dict[str, Any], missing: Missing
) -> None:
    problem = openssl_problem()
    if problem is not None:
        missing(problem)
    # Given URLs of other hosts, and the CA that signed their certificates
    _environment(tmp_path, {})
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    shutil.copy(Authority(tmp_path / "authority").ca, secrets / "ca.pem")
    urls = {
        "database-url": "postgresql://sluice_app:x@db.example/sluice?sslmode=verify-full&sslrootcert=/run/secrets/ca.pem",
        "migrate-database-url": "postgresql://sluice:x@db.example/sluice?sslmode=verify-full",
        "redis-url": "rediss://:x@control.example:6379/0",
        "event-log-url": "kafka+ssl://broker1.example:9093,broker2.example:9093",
    }
    for name, text in urls.items():
        (secrets / name).write_text(f"{text}\n")
    _make_secrets(tmp_path)
    # When the second file is added
    said = _config(tmp_path, "deploy/compose/tls.yml")
    assert said.returncode == 0, said.stderr
    document = yaml.safe_load(said.stdout)
    # Then every program of ours takes the URLs with that CA, and can leave its host
    for name in (*SLUICE, ONCE):
        service = document["services"][name]
        settings = Settings.from_environ(_given(service, secrets))
        assert settings.redis_ca_file == settings.kafka_ca_file == str(secrets / "ca.pem")
        assert "out" in service["networks"], name
        assert set(services[name]["networks"]) <= set(service["networks"]), name
    assert not document["networks"]["out"]
    # And the proxy has HTTPS beside what it had
    proxy = document["services"]["proxy"]
    assert proxy["environment"] == {"TLS_CERTIFICATE": f"{MOUNT}/proxy.pem"}
    assert [one["source"] for one in proxy["secrets"]] == ["proxy.pem"]
    assert set(proxy["ports"]) == {*services["proxy"]["ports"], "0.0.0.0:8443:8443/tcp"}


def test_alerts_have_a_way_to_somebody(services: dict[str, Any]) -> None:
    prometheus = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    [target] = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert target == "alertmanager:9093"
    alertmanager = services["alertmanager"]
    assert f"--config.file={MOUNT}/alertmanager.yml" in alertmanager["command"]
    assert {"back", "front"} == set(alertmanager["networks"])  # front: the way to a receiver outside
    given = yaml.safe_load((ROOT / "deploy" / "compose" / "alertmanager.yml").read_text())
    assert [one["name"] for one in given["receivers"]] == [given["route"]["receiver"]] == ["operators"]
    # The alerts that it names are there
    known = {rule["alert"] for group in _rules() for rule in group["rules"]}
    matchers = [one for rule in given["inhibit_rules"] for one in rule["source_matchers"] + rule["target_matchers"]]
    named = {word for one in matchers for word in re.sub(r'^alertname=~"|"$', "", one).split("|")}
    assert named <= known
    assert {rule["labels"]["severity"] for group in _rules() for rule in group["rules"]} == {"critical", "warning"}


def _rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "monitoring" / "rules" / "alerts.yml").read_text())["groups"]
    return found


@pytest.mark.skipif(shutil.which("amtool") is None, reason="there is no amtool (Debian: prometheus-alertmanager)")
@pytest.mark.parametrize("is_filled_in", [False, True])
def test_alertmanager_takes_its_configuration(tmp_path: Path, *, is_filled_in: bool) -> None:
    text = (ROOT / "deploy" / "compose" / "alertmanager.yml").read_text()
    if is_filled_in:  # every example in it
        text = re.sub(r"^    # (?=( *- |[a-z_]+_configs:|  +[a-z_]+:))", "    ", text, flags=re.MULTILINE)
        assert text.count("_configs:") - text.count("# webhook_configs:") == 3
    path = tmp_path / "alertmanager.yml"
    path.write_text(text.replace("…", "x"))
    said = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


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
    for name in (*SLUICE, ONCE, PROXY):
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
    tmp_path: Path, compose: dict[str, Any], secrets: Path, url: str
) -> None:
    # Given a sink that was selected in .env
    _environment(tmp_path, {"EVENT_SINK_URL": url})
    said = _config(tmp_path)
    assert said.returncode == 0, said.stderr
    document = yaml.safe_load(said.stdout)
    for name in ("ingest", "worker", "control"):
        # Then each of these has the setting, and the folder on one volume that it may write
        service = document["services"][name]
        assert Settings.from_environ(_given(service, secrets)).event_sink_url == url
        mounted = dict(volume.split(":", 1) for volume in service["volumes"])
        assert mounted["archive"].removesuffix(":rw") == "/archive"
    assert "archive" in document["volumes"]
    # And the image has the mount point, so that the volume is not root's alone
    assert "RUN mkdir -m 1777 /archive\n" in (ROOT / "Dockerfile").read_text()
