"""What `./run.sh` calls: start, stop and look at a system on this machine."""

import argparse
import shlex
import signal
import subprocess
import sys
import threading
from typing import Any, Final

from pipeline.errors import SluiceError
from stack.config import StackConfig
from stack.servers import ServerError
from stack.system import System

_EXAMPLES: Final = """\
examples:
  ./run.sh                          everything in the foreground, event log on Redis Streams; Ctrl-C stops it
  ./run.sh --log kafka              the same on Apache Kafka (Java 17 and Maven)
  INGEST_PROCESSES=2 ./run.sh       two ingest processes on one port
  ./run.sh --detach                 return when everything is ready
  eval "$(./run.sh env)"            addresses of the running system into the shell
  SLUICE_HOME=/tmp/b INGEST_PORT=8081 ... ./run.sh    a second system beside the first

servers of your own: DATABASE_URL, REDIS_URL, EVENT_LOG_URL, KAFKA_BOOTSTRAP_SERVERS
ports: INGEST_PORT 8080, FLOWER_PORT 5555, POSTGRES_PORT 5433, REDIS_PORT 6381, LOG_REDIS_PORT 6382, KAFKA_PORT 9093,
       KAFKA_CONTROLLER_PORT 9094
"""
_SAMPLE: Final = (
    '{"correlationId": "test-1", "severity": "INFO", "message": "Test", "source": "cli", "timestamp": 1234567890000}'
)


def main() -> int:
    """Run one command; returns the exit status."""
    arguments = _parse()
    try:
        system = System(StackConfig.from_environ(arguments.log))
        match arguments.command:
            case "up":
                return _up(system, detach=arguments.detach)
            case "stop":
                print("stopped" if system.stop() else f"no system runs in {system.home}")
            case "status":
                return _status(system)
            case "env":
                for name, url in system.urls().items():
                    print(f"export {name}={shlex.quote(url)}")
            case "logs":
                return _logs(system, arguments.name)
            case "clean":
                return _clean(system, sure=arguments.yes)
    except (ServerError, SluiceError) as error:
        print(f"run.sh: {error}", file=sys.stderr)
        return 1
    return 0


def _parse() -> Any:
    parser = argparse.ArgumentParser(
        prog="./run.sh",
        description="Run Sluice on this machine: no root, no Docker, no system service.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--log", choices=("redis", "kafka"), help="the event log (default: as last time, or redis)")
    parser.add_argument("--detach", action="store_true", help="return once everything is ready")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("up", help="start (the default)")
    commands.add_parser("stop", help="stop the system")
    commands.add_parser("status", help="its programs; exit status 1 where one does not run")
    commands.add_parser("env", help="its addresses, for the shell")
    logs = commands.add_parser("logs", help="follow a program's log")
    logs.add_argument("name", nargs="?", help="a name from ./run.sh status; without one, all")
    clean = commands.add_parser("clean", help="delete the data")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(command="up")
    return parser.parse_args()


def _up(system: System, *, detach: bool) -> int:
    """Start; in the foreground, stay until somebody stops it."""
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: interrupted.set())
    print(f"starting Sluice in {system.home}, event log on {system.config.log} …", flush=True)
    urls = system.start(interrupted)
    _print_table(system, urls)
    if detach:
        return 0
    print("\nCtrl-C stops all of it.", flush=True)
    while not interrupted.wait(0.5):
        if system.supervisor_pid() is None:
            print("stopped from elsewhere")
            return 0
    print("\nstopping …", flush=True)
    system.stop()
    print("stopped")
    return 0


def _print_table(system: System, urls: dict[str, str]) -> None:
    rows = [
        ("events", f"{urls['INGEST_URL']}/api/logs"),
        ("health", f"{urls['INGEST_URL']}/api/logs/health"),
        ("Flower", urls["FLOWER_URL"]),
        ("PostgreSQL", urls["DATABASE_URL"]),
        ("Redis (queues, control)", urls["REDIS_URL"]),
        ("event log", urls["EVENT_LOG_URL"]),
        ("logs", str(system.logs)),
    ]
    print("\nSluice is ready.\n")
    for name, value in rows:
        print(f"  {name:<24} {value}")
    print("\nTry it:\n")
    print(
        f"  curl -i {urls['INGEST_URL']}/api/logs -H 'Content-Type: application/json' \\\n    -d '{_SAMPLE}'",
        flush=True,
    )


def _status(system: System) -> int:
    if system.supervisor_pid() is None:
        print(f"no system runs in {system.home}")
        return 1
    all_run = True
    for info in system.programs_now():
        all_run = all_run and info["statename"] == "RUNNING"
        print(f"{info['name']:<16}{info['statename']:<10}{info['description']}")
    return 0 if all_run else 1


def _logs(system: System, name: str | None) -> int:
    paths = sorted(system.logs.glob(f"{name or '*'}.log"))
    if not paths:
        raise ServerError(f"there is no log of {name or 'anything'} in {system.logs}")
    return subprocess.run(["tail", "-n", "20", "-F", *map(str, paths)], check=False).returncode


def _clean(system: System, *, sure: bool) -> int:
    if not sure:
        if not sys.stdin.isatty():
            raise ServerError(f"clean deletes {system.home}: say --yes where nobody can be asked")
        if input(f"delete {system.home} and every event in it? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing deleted")
            return 1
    system.clean()
    print(f"deleted {system.home}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
