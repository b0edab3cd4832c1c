"""`python -m tasks.keys create|list|revoke`: API keys of writers, without a Celery worker.

It needs DATABASE_URL and REDIS_URL. `create` prints the key to the standard output, once, and all other words to the
standard error: KEY=$(python -m tasks.keys create shop).
"""

import argparse
import json
import sys
from typing import Final

from pipeline.errors import SettingsError, SluiceError
from pipeline.keys import digest_of, make_key
from pipeline.settings import Settings, ignore_variables_of_others
from pipeline.text import on_its_lines
from tasks import key_commands
from tasks.context import WorkerContext
from tasks.remote_client import user_at_host

_EXIT_FAILED: Final = 1
_EXIT_SETTINGS: Final = 2


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    found = argparse.ArgumentParser(prog="python -m tasks.keys", description=__doc__)
    commands = found.add_subparsers(required=True, dest="command")
    create = commands.add_parser("create", help="make a key, and print it once")
    create.add_argument("name", help="its account: keys with the same name share its limit and its share")
    create.add_argument("--rate", type=float, help="events/s that the account is admitted at most")
    create.add_argument("--protocols", default="", help="names with commas between; all if it is left out")
    create.add_argument("--days", type=float, help="days until the key expires; never if it is left out")
    create.add_argument("--why", default="no reason given", help="for the list and the control events")
    listing = commands.add_parser("list", help="show all keys, without the keys themselves")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    revoke = commands.add_parser("revoke", help="end a key, or all keys of a name, at once")
    revoke.add_argument("key", help="the id of a key, or a name")
    revoke.add_argument("--why", default="no reason given", help="for the control events")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    asked = parser().parse_args(arguments)
    ignore_variables_of_others()
    try:
        context = WorkerContext(Settings.for_commands())
    except SettingsError as error:
        sys.stderr.write(f"keys: {error}\n")
        return _EXIT_SETTINGS
    try:
        return _run(context, asked)
    except SluiceError as error:
        sys.stderr.write(f"keys: {error}\n")
        return _EXIT_FAILED
    finally:
        context.storage.close()


def _run(context: WorkerContext, asked: argparse.Namespace) -> int:
    actor = user_at_host()
    match asked.command:
        case "create":
            key, key_id = make_key()
            words = key_commands.create(
                context,
                actor,
                asked.name,
                key_id=key_id,
                digest=digest_of(key),
                protocols=protocols_of(asked.protocols),
                days=asked.days,
                rate=asked.rate,
                why=asked.why,
            )
            sys.stderr.write(f"{on_its_lines(words)}\n")
            sys.stdout.write(f"{key}\n")
        case "list":
            text, documents = key_commands.listed(context)
            sys.stdout.write(f"{json.dumps(documents) if asked.json else on_its_lines(text)}\n")
        case _:
            sys.stdout.write(f"{on_its_lines(key_commands.revoke(context, actor, asked.key, asked.why))}\n")
    return 0


def protocols_of(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name for name in (part.strip() for part in text.split(",")) if name]


if __name__ == "__main__":
    sys.exit(main())
