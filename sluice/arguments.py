"""The command line of `sluice`. It needs no package, and imports only what the named command needs: help is quick."""

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, cast

from pipeline.running import CODE, IS_CHECKOUT

_CLIENT: Final = CODE / "clients" / "python" / "src"
DOCTOR_SECONDS: Final = 5.0
SECONDS_MAX: Final = 600.0
EXIT_USAGE: Final = 64  # EX_USAGE of sysexits.h; argparse's own 2 would say "critical" of `status`


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Its arguments and its code are named as `module:function`, and imported when they are needed."""

    about: str
    run: str
    add_arguments: str = ""
    details: str = ""
    is_of_stack: bool = False  # it needs the package that runs a system on this machine, which an image leaves out


# In the order of a first hour.
COMMANDS: Final[dict[str, Command]] = {
    "up": Command(
        "start a system on this machine",
        "sluice.commands:up",
        "sluice.arguments:add_up",
        "Start Sluice on this machine, with private servers where no URL of a server is given. The same as ./run.sh.",
        is_of_stack=True,
    ),
    "down": Command("stop that system", "sluice.commands:down", is_of_stack=True),
    "status": Command(
        "show the state of the whole system",
        "sluice.commands:status",
        "sluice.arguments:add_status",
        "Show the state of the whole system. Exit status: 0 healthy, 1 degraded, 2 critical, 3 unknown.",
    ),
    "logs": Command(
        "follow the log of a program of that system",
        "sluice.commands:logs",
        "sluice.arguments:add_logs",
        is_of_stack=True,
    ),
    "env": Command("print the addresses of that system, for the shell", "sluice.commands:env", is_of_stack=True),
    "send": Command(
        "send events from files",
        "sluice.commands:send",
        "sluice_client.command:add_send_arguments",
        "Send events from NDJSON files. The address is INGEST_URL, or else that of the running system; the API key is "
        "INGEST_KEY.",
    ),
    "keys": Command("make, list and revoke API keys", "sluice.commands:keys", "tasks.key_arguments:add_arguments"),
    "migrate": Command(
        "update the schema of the database", "sluice.commands:migrate", "pipeline.arguments:add_migrate"
    ),
    "gap": Command(
        "show a hole in the event log, and go on behind it",
        "sluice.commands:gap",
        "sluice.arguments:add_gap",
        "Show why a partition stopped at a hole in the event log. With --skip: go on behind the hole, and give up its "
        "offsets. The same as `inspect gap` and `control skip_gap` of Celery; a control worker must run.",
    ),
    "doctor": Command(
        "look at settings, servers and this machine, and say what to do",
        "sluice.commands:doctor",
        "sluice.arguments:add_doctor",
        "Look at the settings, the servers, the rights there, clocks, disks and this shell. One line each: ok, or what "
        "is wrong and what to do. It asks all servers at the same time. Exit status: 0 if nothing is wrong, or else 1.",
    ),
    "docs": Command(
        "show the documentation as a site on this machine",
        "sluice.commands:docs",
        "sluice.arguments:add_docs",
        "Serve the documentation on 127.0.0.1 until Ctrl-C. It is built first if it is not there or older than its "
        "sources. The port is DOCS_PORT, or 8000; PORT_BASE moves it too. Only a checkout has the documentation.",
        is_of_stack=True,
    ),
    "completion": Command(
        "print the completion of this command for a shell",
        "sluice.commands:completion",
        "sluice.arguments:add_completion",
        'Print the completion for a shell: eval "$(sluice completion bash)" in ~/.bashrc, or zsh in ~/.zshrc.',
    ),
    "version": Command("print the version", "sluice.commands:version"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors end with the next step."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n{self.prog} --help shows what it takes\n")


def make_parser(words: Sequence[str], *, is_whole: bool = False) -> Parser:
    """The parser. Only the command in `words` gets its arguments, unless all are needed (`is_whole`)."""
    parser = Parser(prog="sluice", description="Run and look after Sluice.")
    commands = parser.add_subparsers(dest="chosen", required=True, metavar="COMMAND")
    has_stack = importlib.util.find_spec("stack") is not None
    for name, command in COMMANDS.items():
        if command.is_of_stack and not has_stack:
            continue
        one = commands.add_parser(
            name,
            help=command.about,
            description=command.details or f"{command.about[:1].upper()}{command.about[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter if name == "up" else argparse.HelpFormatter,
        )
        if command.add_arguments and (is_whole or name in words[:1]):
            cast(Callable[[argparse.ArgumentParser], None], load(command.add_arguments))(one)
    return parser


def load(place: str) -> Callable[..., object]:
    """What is named as `module:function`."""
    module, _, name = place.partition(":")
    if IS_CHECKOUT and str(_CLIENT) not in sys.path:  # set-up makes it visible; help works before that
        sys.path.append(str(_CLIENT))
    found: Callable[..., object] = getattr(importlib.import_module(module), name)
    return found


def add_up(parser: argparse.ArgumentParser) -> None:
    """The arguments of `up`."""
    from stack.arguments import add_up_options, epilog  # noqa: PLC0415 - of this command only

    add_up_options(parser)
    home = "~/.local/share/sluice/system, in a checkout .local/system"
    parser.epilog = epilog(up="sluice up", env="sluice env", home=home)


def add_logs(parser: argparse.ArgumentParser) -> None:
    """The arguments of `logs`."""
    from stack.arguments import add_log_name  # noqa: PLC0415

    add_log_name(parser, "sluice status --programs")


def add_status(parser: argparse.ArgumentParser) -> None:
    """The arguments of `status`."""
    from pipeline.arguments import add_status as add  # noqa: PLC0415

    add(parser)
    parser.add_argument(
        "--programs", action="store_true", help="only list the programs that `sluice up` has started, and if they run"
    )


def add_gap(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gap`."""
    parser.add_argument("partition", type=int, help="a partition of the event log, from 0")
    parser.add_argument(
        "--skip",
        nargs=2,
        type=int,
        metavar=("FROM", "TO"),
        help="go on behind this hole, which must be the one that is shown",
    )
    parser.add_argument("--dry-run", action="store_true", help="with --skip: say what it would do, and change nothing")
    parser.add_argument("--why", default="", metavar="REASON", help="with --skip: for the control events")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """The arguments of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=DOCTOR_SECONDS,
        help=f"wait for each answer for so long at most ({DOCTOR_SECONDS:g})",
    )


def add_docs(parser: argparse.ArgumentParser) -> None:
    """The arguments of `docs`."""
    parser.add_argument(
        "--build", type=Path, metavar="DIR", help="only build the site in this folder; it opens there without a server"
    )


def add_completion(parser: argparse.ArgumentParser) -> None:
    """The arguments of `completion`."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= SECONDS_MAX:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to {SECONDS_MAX:g}")
