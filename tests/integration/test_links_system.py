"""A whole system whose servers only take TLS, as a user with few rights, with passwords that no output may have."""

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from integration.test_flower import USER, Flower

from checks.testbed.database import ask
from checks.testbed.processes import ROOT, System, http_status
from checks.testbed.waiting import PATIENT_APPEND_SECONDS, RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import LOOPBACK, free_port
from support.certificates import Authority, openssl_problem
from support.postgres_links import OWNER_PASSWORD, tls_postgres, tls_programs
from support.redis_tls import PASSWORD, redis_tls_server, tls_program
from support.traffic import event

APP_PASSWORD = "äpp;' p@/%"
OPERATOR_PASSWORD = "öper'at&r \"p@ss/%2"
EVENTS = 300


def run(settings: Settings, *words: str) -> str:
    """What a program of Sluice prints; it must succeed."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *words],
        env=environ_with(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS_MAX,
    )
    assert ended.returncode in (0, 1, 2), ended.stderr  # of `status`: how bad it is
    return ended.stdout + ended.stderr


def test_a_system_over_tls_stores_events_and_shows_no_password(tmp_path: Path, missing: Callable[[str], None]) -> None:
    problem = openssl_problem()
    if problem is None and (tls_program() is None or tls_programs() is None):
        problem = "there is no Redis or no PostgreSQL with TLS (Debian: redis-tools, postgresql)"
    if problem is not None:
        missing(problem)
    with contextlib.ExitStack() as stack:
        # Given servers with TLS and passwords, and a user of PostgreSQL that does not exist yet
        authority = Authority(tmp_path / "certificates")
        postgres = stack.enter_context(tls_postgres(tmp_path / "postgres", authority))
        servers = []
        for is_log in (False, True):
            (tmp_path / f"redis-{is_log}").mkdir()
            servers.append(redis_tls_server(tmp_path / f"redis-{is_log}", authority, is_log=is_log))
            stack.callback(servers[-1].stop)
            servers[-1].start()
        verified = f"?sslmode=verify-full&sslrootcert={authority.ca}"
        app = f"app:{quote(APP_PASSWORD, safe='')}"
        settings = Settings(
            database_url=f"postgresql://{app}@{LOOPBACK}:{postgres.port}/postgres{verified}",
            redis_url=servers[0].url,
            event_log_url=servers[1].url,
            redis_ca_file=str(authority.ca),
            operator_password=OPERATOR_PASSWORD,
            ingest_port=free_port(),
            log_level="DEBUG",
            regulate_seconds=0.5,
            append_seconds_max=PATIENT_APPEND_SECONDS,
        )
        owner = Settings(**{**vars(settings), "migrate_database_url": postgres.url + verified})
        # When the schema is migrated by its command, twice
        said = [run(owner, "pipeline", "migrate"), run(owner, "pipeline", "migrate")]
        assert "applied 0001_events.sql" in said[0]
        assert "made the role app\n" in said[0]
        assert "granted rights to app\nthe schema is up to date\n" in said[1]
        assert "applied" not in said[1]
        # And a system runs as that user
        system = System(settings, tmp_path)
        stack.callback(system.stop)
        system.start()
        flower = Flower(settings, tmp_path, FLOWER_BASIC_AUTH=USER)
        stack.callback(flower.stop)
        body = json.dumps([event(number, run="tls") for number in range(EVENTS)]).encode()
        request = urllib.request.Request(f"{system.url}/api/logs", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
            assert answer.status == 202
        # Then it stores the events, over encrypted connections
        count = "SELECT count(*) FROM log_events"
        system.wait(lambda: ask(settings.database_url, count) == [(EVENTS,)], "all are stored")
        plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE NOT ssl AND client_port > 0"
        assert ask(postgres.url + verified, plain) == [(0,)]
        # And Flower sees its workers and queues
        wait_until(lambda: http_status(f"http://{LOOPBACK}:{flower.port}/healthcheck") == 200, "Flower")
        wait_until(lambda: len(flower.workers()) == 2, "both workers")
        said += [flower.get("/broker"), flower.get("/"), json.dumps(flower.workers())]
        assert "batches" in said[2]
        # And nothing that anybody reads has a password, as it is or as it is in a URL; nor when servers fail
        pages = ("/", "/api/logs/health", "/metrics", "/openapi.json", "/api/logs/throttle")
        said += [system.get(page) for page in pages]
        said.append(run(settings, "sluice", "doctor"))
        assert "PostgreSQL" in said[-1]
        said += [run(settings, "pipeline", "status", "--json"), run(settings, "celery", "-A", "tasks.app", "report")]
        said.append(run(settings, "celery", "-A", "tasks.app", "inspect", "sluice"))
        servers[0].kill()
        # PostgreSQL goes later: a worker that ends with its broker waits for the schema first, when it is started again
        wait_until(lambda: "Cannot connect to" in system.batches.log(), "the broker is missed")
        postgres.kill()
        said += [run(settings, *words) for words in (("pipeline", "status"), ("sluice", "doctor"))]
        said.append(system.get("/api/logs/health"))
        for server in (servers[0], postgres):
            server.start()  # workers end sooner with their broker
        said += [flower.log.read_text(), *(program.log() for program in system.programs)]
        for number, text in enumerate(said):
            for password in (APP_PASSWORD, OWNER_PASSWORD, OPERATOR_PASSWORD, PASSWORD):
                for form in (password, quote(password), quote(password, safe=""), json.dumps(password)[1:-1]):
                    assert form not in text, f"output {number} has a password: {text[:200]}"
