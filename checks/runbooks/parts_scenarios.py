"""Conditions that need a part beside Sluice's own: a disk, a replica, brokers, certificates, Alertmanager."""

import contextlib
import datetime
import json
import os
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from checks.runbooks.act import Act, NotActedOutError
from checks.runbooks.systems import ClientFiles, SmallDisk
from checks.testbed.kafka_cluster import Cluster
from checks.testbed.redis_pair import RedisPair
from stack.servers import LOOPBACK, ROOT, free_port

_INSPECT: Final = "celery -A tasks.app inspect"
_DISK_BYTES: Final = 64 << 20
_FILLED_BYTES: Final = 60 << 20  # over nine tenths of the disk
_DEAF_APP: Final = "checks.testbed.deaf_app"
_ALERTMANAGERS: Final = ("alertmanager", "prometheus-alertmanager")


def database_refused_session(act: Act) -> None:
    """PostgreSQL answers, and accepts no session of Sluice's."""
    act.note("made: the database accepts no sessions, and ends those that are open")
    act.sql(
        "ALTER DATABASE sluice ALLOW_CONNECTIONS false",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'sluice'",
        database="template1",
    )
    act.send(1)
    act.see("database_refused", "not currently accepting connections")
    act.see_alert("DatabaseRefused")
    act.see_alert_end("BreakerOpen")
    act.run("python -m sluice doctor | grep -A 1 PostgreSQL")
    act.note("step 1: sessions are accepted again")
    act.sql("ALTER DATABASE sluice ALLOW_CONNECTIONS true", database="template1")
    act.see_end("database_refused", "breaker_open")
    act.see_alert_end("DatabaseRefused")
    act.until(lambda: act.status()["consumerLag"] == 0, "the lag is 0: the event is stored")


def database_refused_table(act: Act) -> None:
    """Somebody renames a column of log_events, while drains have sessions."""
    rename = 'psql "$DATABASE_URL" -c "ALTER TABLE log_events RENAME COLUMN source TO origin"'
    act.note(f"made: {rename}; and an event")
    act.run(rename)
    act.send(1)
    act.see("database_refused", "log_events")
    act.run("python -m sluice doctor | grep -A 1 log_events")
    act.note("step 1: the change is undone")
    act.run('psql "$DATABASE_URL" -c "ALTER TABLE log_events RENAME COLUMN origin TO source"')
    act.see_end("database_refused", "breaker_open")
    act.until(lambda: act.status()["consumerLag"] == 0, "the lag is 0: the event is stored")


def loop(act: Act) -> None:
    """A worker loses its subscription to its queue, and Celery does not notice."""
    act.note(
        "made: in place of the system's workers for batches, one that takes no messages after a command of the test"
    )
    act.stop("batches")
    metrics_port = str(act.port("BATCHES_METRICS_PORT"))
    with act.worker("deaf", "batches", app=_DEAF_APP, WORKER_METRICS_PORT=metrics_port):
        act.run_until(f"{_INSPECT} ping", lambda said: "2 nodes online" in said, "both workers answer")
        act.see_alert_end("WorkerMissing")
        act.run(f"celery -A {_DEAF_APP} control take_nothing batches unsubscribed")
        act.note("an event is sent")
        act.send(1)
        act.see("loop_fails", "has taken nothing")
        act.see_alert("LoopFails")
        said = act.run('grep "has taken nothing" "$SLUICE_HOME/logs/deaf.log" | tail -n 1 | cut -c 1-300')
        if not said:
            raise NotActedOutError("the log of the worker does not say what the page tells to search for")
        act.note("it has reconnected by itself")
        act.see_end("loop_fails", "no_progress")
        act.until(lambda: act.status()["consumerLag"] == 0, "the lag is 0: the event is stored")
    act.start("batches")


def disk_near_full(act: Act) -> None:
    """A small disk under WATCHED_PATHS is filled."""
    if os.geteuid() != 0:
        raise NotActedOutError("a small disk (tmpfs) can be mounted by root only: run it as root")
    disk = act.part(SmallDisk).folder
    act.run(f"mount -t tmpfs -o size={_DISK_BYTES} tmpfs {disk}")
    try:
        (disk / "old.jsonl").write_bytes(bytes(_FILLED_BYTES))
        act.note(f"made: a disk of 64 MB in WATCHED_PATHS, and a file of {_FILLED_BYTES >> 20} MB on it")
        act.see_alert("DiskNearFull")
        act.run(f"df -h {disk}")
        act.run("python -m sluice doctor | grep -i -A 1 disk")
        act.note("step 1: an old file of the archive is deleted")
        act.run(f"rm {disk}/old.jsonl; df -h {disk}")
        act.see_alert_end("DiskNearFull")
    finally:
        act.run(f"umount {disk}")


def replicas_missing(act: Act) -> None:
    """The only replica of the log's Redis is stopped; LOG_REPLICAS_MIN=1."""
    pair = act.part(RedisPair)
    act.until(lambda: act.send(1) == [202], "clients get 202")
    act.note("made: the only replica of the log's Redis is stopped; LOG_REPLICAS_MIN=1")
    pair.replica.stop()
    act.see("replicas_missing")
    act.see_alert("ReplicasMissing")
    act.until(lambda: act.send(1) == [503], "clients get 503")
    act.run('redis-cli -u "$EVENT_LOG_URL" INFO replication | grep -E "^(role|connected_slaves|slave)"')
    act.note("step 1: the replica is started")
    pair.rejoin()
    act.see_end("replicas_missing", "log_down")
    act.see_alert_end("ReplicasMissing")
    act.run('redis-cli -u "$EVENT_LOG_URL" INFO replication | grep -E "^(role|connected_slaves|slave)"')
    act.until(lambda: act.send(1) == [202], "clients get 202")
    act.until(lambda: act.status()["consumerLag"] == 0, "the lag is 0: new events are stored")


def partition_away(act: Act) -> None:
    """One of two brokers is killed; each partition has one copy."""
    cluster = act.part(Cluster)
    topics = f"kafka-topics.sh --bootstrap-server {cluster.first.bootstrap} --describe --unavailable-partitions"
    act.note("made: SIGKILL to one of two brokers; KAFKA_REPLICATION=1")
    cluster.second.kill()
    act.see("partition_away")
    act.run(topics)
    act.note("step 1: it is started")
    cluster.second.start()
    act.see_end("partition_away", "log_down", "lag_unknown")
    act.run_until(topics, lambda said: not said, "no partition without a leader")
    act.run(f"{_INSPECT} lag")
    act.until(lambda: act.send(1, key="back") == [202], "clients get 202")
    act.until(lambda: act.status()["consumerLag"] == 0, "the lag is 0: new events are stored")


def log_set_up(act: Act) -> None:
    """Somebody gives the topic a retention."""
    server = f"--bootstrap-server {act.part(Cluster).first.bootstrap}"
    change = f"kafka-configs.sh {server} --alter --topic sluice-events --add-config retention.ms=604800000"
    act.note(f"made: {change}")
    act.run(change)
    act.see("log_set_up", "retention.ms")
    look_at = next(one["lookAt"] for one in act.status()["reasons"] if one["code"] == "log_set_up")
    act.note("step 1")
    act.run(f"{look_at.split('`')[1]} {server}")
    act.see_end("log_set_up")


def client_certificates_refused(act: Act) -> None:
    """The list of revoked certificates ends, and nobody renewed it."""
    clients = act.part(ClientFiles)
    certificate = clients.authority.issue("shop")
    event = '{"correlationId":"c","severity":"INFO","message":"m","source":"s","timestamp":1764200000000}'
    send = (
        f"curl -s --cert {certificate} -o /dev/null -w '%{{http_code}} %{{errormsg}}\\n' \"$INGEST_URL/api/logs\" "
        f"-H 'Content-Type: application/json' -d '{event}'"
    )
    count = (
        'curl -s -u any:"$OPERATOR_PASSWORD" "${OPERATOR_URL:-$INGEST_URL}/metrics" | '
        "grep '^sluice_ingest_tls_refusals_total'"
    )
    act.run_until(send, lambda said: said.startswith("202"), "a client with a certificate gets 202")
    clients.publish(clients.authority.revocations(valid=-datetime.timedelta(hours=1)))
    act.note("made: the list of revoked certificates in INGEST_TLS_CLIENT_CA ended an hour ago")
    act.run_until(send, lambda said: not said.startswith("202"), "the client is refused")
    act.see_alert("ClientCertificatesRefused")
    act.run(count)
    nextupdate = f"sed -n '/BEGIN X509 CRL/,$p' {clients.file} | openssl crl -noout -nextupdate"
    act.run(nextupdate)
    act.note("step 1: the list is renewed")
    clients.publish(clients.authority.revocations())
    act.run(nextupdate)
    act.run_until(send, lambda said: said.startswith("202"), "the client gets 202")
    before = act.run(count)
    act.run(send)
    if act.run(count) != before:
        raise NotActedOutError("a valid certificate was counted as refused")


class _Receiver(BaseHTTPRequestHandler):
    """Receives Alertmanager's requests."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.alerts += [one["labels"]["alertname"] for one in body["alerts"]]  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        """Print nothing on the terminal."""


@contextlib.contextmanager
def _receiver(port: int) -> Iterator[list[str]]:
    """A receiver of alerts; yields the names of those that arrived."""
    server = ThreadingHTTPServer((LOOPBACK, port), _Receiver)
    alerts: list[str] = []
    server.alerts = alerts  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield alerts
    finally:
        server.shutdown()
        server.server_close()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def alerts_not_delivered(act: Act) -> None:
    """Alertmanager has no receiver, and then one that does not answer."""
    program = next((found for name in _ALERTMANAGERS if (found := shutil.which(name))), None)
    prometheus, amtool = shutil.which("prometheus"), shutil.which("amtool")
    if program is None or prometheus is None or amtool is None:
        raise NotActedOutError("this page needs prometheus, alertmanager and amtool on the PATH (Debian has all three)")
    folder = act.home / "alertmanager"
    folder.mkdir(exist_ok=True)
    port, prometheus_port, receiver_port = free_port(), free_port(), free_port()
    place, prometheus_url = f"{LOOPBACK}:{port}", f"http://{LOOPBACK}:{prometheus_port}"
    (folder / "prometheus.json").write_text(json.dumps(_prometheus_config(place)))
    words = [prometheus, f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/data"]
    with act.program("prometheus-2", *words, f"--web.listen-address={LOOPBACK}:{prometheus_port}"):
        act.until(lambda: _answers(f"{prometheus_url}/-/ready"), "a Prometheus that asks Alertmanager is ready")
        with _alertmanager(act, program, folder, port, ""):
            act.note("made: an Alertmanager whose receiver has no address")
            act.see_alert("AlertsReachNobody", prometheus_url)
            act.run(f"curl -s http://{place}/metrics | grep -E 'alertmanager_integrations '")
        act.note("steps 2 and 4: a receiver is filled in, and Alertmanager restarts; nothing listens at its address")
        with _alertmanager(act, program, folder, port, f"http://{LOOPBACK}:{receiver_port}/"):
            act.see_alert_end("AlertsReachNobody", prometheus_url)
            act.run(f"amtool alert add test severity=critical --alertmanager.url=http://{place}")
            act.see_alert("AlertsReachNobody", prometheus_url)
            act.run(f"grep -o 'err=.*' {act.home}/logs/alertmanager.log | tail -n 1 | cut -c 1-200")
        act.note("steps 3 and 4: the receiver is started, and Alertmanager restarts")
        with (
            _receiver(receiver_port) as alerts,
            _alertmanager(act, program, folder, port, f"http://{LOOPBACK}:{receiver_port}/"),
        ):
            act.run(f"amtool alert add test severity=critical --alertmanager.url=http://{place}")
            act.until(lambda: "test" in alerts, "the alert has arrived")
            act.note("AlertsReachNobody looks a quarter of an hour back")


def _prometheus_config(place: str) -> dict[str, object]:
    """Sluice's rules, and this Alertmanager."""
    targets = [{"static_configs": [{"targets": [place]}]}]
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "monitoring" / "rules" / "*.yml")],
        "scrape_configs": [{"job_name": "alertmanager", **targets[0]}],
        "alerting": {"alertmanagers": targets},
    }


@contextlib.contextmanager
def _alertmanager(act: Act, program: str, folder: Path, port: int, receiver: str) -> Iterator[None]:
    """A running Alertmanager that sends alerts to a URL; without a URL, it sends none."""
    hooks = [{"url": receiver}] if receiver else []
    config = {
        "route": {"receiver": "on-call", "group_wait": "1s", "group_interval": "1s"},
        "receivers": [{"name": "on-call", "webhook_configs": hooks}],
    }
    (folder / "alertmanager.json").write_text(json.dumps(config))
    words = [program, f"--config.file={folder}/alertmanager.json", f"--storage.path={folder}/state"]
    with act.program("alertmanager", *words, "--cluster.listen-address=", f"--web.listen-address={LOOPBACK}:{port}"):
        act.until(lambda: _answers(f"http://{LOOPBACK}:{port}/-/ready"), "Alertmanager is ready")
        yield
