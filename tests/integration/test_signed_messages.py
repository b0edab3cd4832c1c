"""Signed messages on real workers: what is signed works, and what others send is refused, counted and logged."""

import json
import subprocess
import sys
import urllib.request
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from integration.test_flower import USER, Flower

from checks.testbed.database import ask
from checks.testbed.processes import ROOT, Program, System
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from pipeline.clock import SystemClock
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import Server, free_port
from support.traffic import event
from tasks import signing

EVENTS = 100
PATIENT = ("--timeout", str(WAIT_SECONDS_MAX))  # the first answer to a command of ours ends the wait
CHANNEL = "/0.celery.pidbox"


def with_key(settings: Settings, folder: Path, name: str) -> Settings:
    key, certificate = signing.create(name, folder)
    return replace(
        settings,
        signing_key_file=str(key),
        signing_cert_file=str(certificate),
        signing_cert_folder=str(certificate.parent),
    )


def control(settings: Settings, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks.app", *words], env=environ_with(settings), cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX,
    )  # fmt: skip


# Of a message's body, its content type and encoding.
PRETENDED = [
    ("as it is", "application/text", "binary"),
    ("as it is", "application/data", "binary"),
    ("as it is", None, "binary"),
    ("as it is", "application/json", "binary"),
    ("JSON", "application/text", "utf-8"),
    ("JSON", "application/json", "utf-8"),
    ("JSON", "application/data", "utf-8"),
    ("empty", "application/data", "utf-8"),
]


def _pretended(kind: str, content_type: str | None, encoding: str, prefix: str) -> tuple[str, str]:
    """A task and a remote command that are not signed, as they are in Redis."""
    sent = {"at": SystemClock().now(), "id": uuid.uuid4().hex, "prefix": prefix}
    pause = {"ticket": uuid.uuid4().hex, "by": "eve", signing.SENT: sent}
    command = {"method": "pause_consumption", "arguments": pause, "destination": None}
    bodies: list[Any] = [[[], {}, {}], command]
    if kind == "empty":
        bodies = ["", {}]
    headers = {"task": "sluice.regulate", "id": uuid.uuid4().hex, "lang": "py", "argsrepr": "", "kwargsrepr": ""}
    return tuple(  # type: ignore[return-value]
        json.dumps(
            {
                "body": json.dumps(body) if kind == "JSON" else body,
                "content-type": content_type,
                "content-encoding": encoding,
                "headers": headers if number == 0 else {"clock": 1, "expires": 0},
                "properties": {
                    "delivery_mode": 1,
                    "delivery_tag": uuid.uuid4().hex,
                    "delivery_info": {"exchange": "", "routing_key": "control"},
                    "priority": 0,
                },
            }
        )
        for number, body in enumerate(bodies)
    )


class Broker:
    """The broker, as somebody who may do everything there, and has no key."""

    def __init__(self, settings: Settings) -> None:
        self.prefix = settings.key_prefix
        self.client: Any = redis.Redis.from_url(settings.redis_url, decode_responses=True)
        self.app = Celery("eve", broker=settings.redis_url)
        self.app.conf.broker_transport_options = {"global_keyprefix": self.prefix}

    def dropped(self, reason: str) -> int:
        return int(float(self.client.hget(f"{self.prefix}counters", f"dropped:{reason}") or 0))


def test_only_those_with_a_key_can_give_work_and_commands(
    settings: Settings, own_control_redis: Server, tmp_path: Path
) -> None:
    # Given a system whose workers, Beat and operator have keys
    keys, settings = tmp_path / "keys", replace(settings, redis_url=own_control_redis.url, ingest_port=free_port())
    workers, operator = with_key(settings, keys, "workers"), with_key(settings, keys, "ann")
    system = System(workers, tmp_path)
    flower = None
    broker = Broker(settings)
    try:
        system.start()
        flower = Flower(operator, tmp_path, FLOWER_BASIC_AUTH=USER)
        # Then it stores events: hints and ticks are signed
        body = json.dumps([event(number, run="signed") for number in range(EVENTS)]).encode()
        request = urllib.request.Request(f"{system.url}/api/logs", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
            assert answer.status == 202
        count = "SELECT count(*) FROM log_events"
        system.wait(lambda: ask(settings.database_url, count) == [(EVENTS,)], "all are stored")
        # And the operator's commands are carried out, Celery's own and ours, and Flower's
        with broker.client.pubsub() as listening:
            listening.subscribe(broker.prefix + CHANNEL)
            assert "Consumption is paused" in control(operator, "control", *PATIENT, "pause_consumption", "test").stdout
            recorded = _commands(listening)
        assert "Lifted by" in control(operator, "control", *PATIENT, "resume_consumption").stdout
        wait_until(lambda: _pongs(operator) == 2, "both workers answer")
        wait_until(lambda: len(flower.workers()) == 2, "Flower sees both workers")
        assert (broker.dropped("unsigned"), broker.dropped("repeated")) == (0, 0)
        # When somebody without a key sends tasks and commands
        for queue in ("batches", "control"):
            broker.app.send_task("sluice.regulate", queue=queue)
        broker.app.control.broadcast("pause_consumption", {"ticket": "1" * 32, "by": "eve"})
        broker.app.control.broadcast("shutdown")
        # Then they are counted as unsigned by each that gets them, logged, and not carried out
        system.wait(lambda: broker.dropped("unsigned") == 6, "they are counted")
        for worker in (system.batches, system.control):
            assert "dropped a message from the queue (unsigned)" in worker.log()
        # And so is what pretends to need no decoding: kombu takes some types and bodies as they are
        for number, (kind, content_type, encoding) in enumerate(PRETENDED):
            task, command = _pretended(kind, content_type, encoding, broker.prefix)
            broker.client.lpush(f"{broker.prefix}control", task)
            broker.client.publish(broker.prefix + CHANNEL, command)
            expected = 6 + 3 * (number + 1)
            system.wait(lambda expected=expected: broker.dropped("unsigned") == expected, f"{number}")  # type: ignore[misc]
        assert system.health()["consumption"] == "running"
        # And a command by a key that is not trusted is not either
        stranger = with_key(settings, tmp_path / "others", "eve")
        refused = control(stranger, "control", "pause_consumption")
        assert refused.returncode != 0
        assert "no control worker answered" in refused.stderr
        system.wait(lambda: broker.dropped("unsigned") == 8 + 3 * len(PRETENDED), "it is counted")
        # And a command that was recorded is not carried out again
        for message in recorded:
            broker.client.publish(broker.prefix + CHANNEL, message)
        system.wait(lambda: broker.dropped("repeated") == 2 * len(recorded), "they are counted")
        # And signed messages still work
        assert system.health()["consumption"] == "running"
        wait_until(lambda: _pongs(operator) == 2, "both workers answer")
        lines = control(replace(settings, signing_key_file=""), "control", "pause_consumption")
        assert lines.returncode != 0
        assert system.health()["consumption"] == "running"
    finally:
        if flower is not None:
            flower.stop()
        system.stop()


def _pongs(settings: Settings) -> int:
    """How many workers answer within Celery's second: a busy one may need another try."""
    return control(settings, "inspect", "ping").stdout.count("pong")


def _commands(listening: Any) -> list[str]:
    """The commands that were published."""
    found: list[str] = []

    def are_found() -> bool:
        while (message := listening.get_message(timeout=1.0)) is not None:
            if message["type"] == "message":
                found.append(message["data"])
        return bool(found)

    wait_until(are_found, "the commands arrive")
    return found


def test_a_worker_without_the_key_of_its_certificate_does_not_start(settings: Settings, tmp_path: Path) -> None:
    one, other = with_key(settings, tmp_path, "a"), with_key(settings, tmp_path, "b")
    words = ["celery", "-A", "tasks.app", "worker", "-Q", "control", "-n", "c@h", "--concurrency", "1"]
    wrong = replace(one, signing_key_file=other.signing_key_file)
    program = Program("wrong", words, wrong, tmp_path).start()
    wait_until(lambda: not program.is_running, "it ends")
    assert program.stop() == 1
    assert program.log().strip() == "celery: SIGNING_KEY_FILE is not the key of SIGNING_CERT_FILE"
