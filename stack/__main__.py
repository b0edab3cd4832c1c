"""The program behind `./run.sh`: starts, stops and shows a system on this machine."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.errors import SluiceError
from pipeline.running import SYSTEM_VARIABLE, home_of, how_to
from pipeline.secrets import hide_secrets
from pipeline.settings import misspelled_settings
from stack import surroundings
from stack.arguments import parse
from stack.config import StackConfig
from stack.following import follow
from stack.servers import ServerError
from stack.system import System, SystemFolder

_SAMPLE: Final = (
    '{"correlationId": "test-1", "severity": "INFO", "message": "Test", "source": "cli", "timestamp": 1234567890000}'
)


def main(words: Sequence[str] | None = None, *, program: str = "run.sh") -> int:
    """Run one command of `./run.sh`; returns the exit status. `program` begins the messages."""
    arguments = parse(words)
    try:
        ignored = surroundings.clear(os.environ)
        surroundings.clear_interpreters(os.environ)
        if arguments.policy is not None:
            os.environ["RATE_POLICY"] = arguments.policy.replace("-", "_")
        if arguments.command == "up":
            if ignored:
                said = f"ignored, since monitoring/flowerconfig.py decides: {', '.join(ignored)}"
                print(f"{program}: {said}", file=sys.stderr)
            misspelled = misspelled_settings()
            if misspelled is not None:
                print(f"{program}: {misspelled}", file=sys.stderr)
            return _up(System(StackConfig.from_environ(arguments.log)), detach=arguments.detach)
        system = SystemFolder(home_of(os.environ))  # whatever other settings this shell has: a stop is not refused
        match arguments.command:
            case "stop":
                print("stopped" if system.stop() else f"no system runs in {system.home}")
            case "status":
                return _status(system)
            case "env":
                for name, value in {**system.urls(), SYSTEM_VARIABLE: str(system.home)}.items():
                    print(f"export {name}={shlex.quote(value)}")
            case "logs":
                return _logs(system, arguments.name)
            case "clean":
                return _clean(system, sure=arguments.yes)
    except (ServerError, SluiceError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0


def _up(system: System, *, detach: bool) -> int:
    """Start; in the foreground, run until a signal or a stop. A second Ctrl-C changes nothing."""
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: interrupted.set())
    _say(f"starting Sluice in {system.home}, event log on {system.config.log} …")
    urls = system.start(interrupted)
    _say(_table(system, urls))
    if detach:
        return 0
    _say("\nCtrl-C stops all of it.")
    while not interrupted.wait(0.5):
        if system.supervisor_pid() is None:
            if not system.stop():
                _say("stopped from elsewhere")
                return 0
            raise ServerError("the supervisor was killed; its programs are stopped")
    _say("\nstopping …")
    system.stop()
    _say("stopped")
    return 0


def _say(text: str) -> None:
    """Print if possible: a closed terminal or pipe must not prevent the stop of started programs."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _table(system: System, urls: dict[str, str]) -> str:
    given, operators = system.config.given, urls.get("OPERATOR_URL", urls["INGEST_URL"])
    password = "  (any user, OPERATOR_PASSWORD)" if system.config.has_operator_password else ""
    rows = [
        ("live page", f"{operators}/{password}"),
        ("events", f"{urls['INGEST_URL']}/api/logs"),
        ("health", f"{operators}/api/logs/health"),
        ("Flower", urls["FLOWER_URL"]),
        *([("Prometheus", urls["PROMETHEUS_URL"])] if "PROMETHEUS_URL" in urls else []),
        ("PostgreSQL", _shown(urls["DATABASE_URL"], is_given="DATABASE_URL" in given)),
        ("Redis (queues, control)", _shown(urls["REDIS_URL"], is_given="REDIS_URL" in given)),
        ("event log", _shown(urls["EVENT_LOG_URL"], is_given="EVENT_LOG_URL" in given)),
        ("logs", str(system.logs)),
    ]
    lines = ["", "Sluice is ready.", "", *(f"  {name:<24} {value}" for name, value in rows), "", "Try it:", ""]
    return "\n".join([*lines, *_first_event(urls["INGEST_URL"], os.environ, needs_key=system.config.has_ingest_keys)])


def _first_event(url: str, environ: Mapping[str, str], *, needs_key: bool) -> list[str]:
    """The commands that send an event. `environ`: the settings of ingest's certificates, if it has any."""
    make_key = [f"  KEY=$({how_to('keys')} create trial)"] if needs_key else []
    key = ' -H "Authorization: Bearer $KEY"' if needs_key else ""
    # curl accepts the server's own certificate as an authority, so this works whoever signed it.
    certificate = environ.get("INGEST_TLS_CERT", "").strip()
    trusted = f" --cacert {shlex.quote(certificate)}" if certificate else ""
    own = " --cert CLIENT.pem" if environ.get("INGEST_TLS_CLIENT") == "required" else ""
    send = f"  curl -i {url}/api/logs{trusted}{own} -H 'Content-Type: application/json'{key} \\"
    return [*make_key, send, f"    -d '{_SAMPLE}'"]


def _shown(url: str, *, is_given: bool) -> str:
    """A URL for the terminal: without its password, and marked if the user provided the server."""
    return f"{hide_secrets(url)}  (given)" if is_given else hide_secrets(url)


def _status(system: SystemFolder) -> int:
    if system.supervisor_pid() is None:
        left = system.remains()
        print(
            f"the supervisor of {system.home} was killed and left {left} processes: {how_to('stop')} ends them"
            if left
            else f"no system runs in {system.home}: {how_to('up')} starts one"
        )
        return 1
    urls = system.urls()
    print(f"{urls['INGEST_URL']}, event log {_shown(urls['EVENT_LOG_URL'], is_given=False)}")
    all_run = True
    for info in system.programs_now():
        all_run = all_run and info["statename"] == "RUNNING"
        print(f"{info['name']:<16}{info['statename']:<10}{info['description']}")
    return 0 if all_run else 1


def _logs(system: SystemFolder, name: str | None) -> int:
    paths = sorted(system.logs.glob(f"{name or '*'}.log"))
    if not paths:
        raise ServerError(
            f"there is no log of {name or 'anything'} in {system.logs}: {how_to('status')} lists the names"
        )
    return follow(paths)


def _clean(system: SystemFolder, *, sure: bool) -> int:
    if not sure:
        if not sys.stdin.isatty():
            raise ServerError(f"clean deletes {system.home}: add --yes if there is no terminal")
        if _ask(f"delete the data in {system.home}, every event of it? [y/N] ") not in ("y", "yes"):
            print("nothing deleted")
            return 1
    system.clean()
    print(f"deleted the data in {system.home}")
    return 0


def _ask(question: str) -> str:
    try:
        return input(question).strip().lower()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


if __name__ == "__main__":
    sys.exit(main())
