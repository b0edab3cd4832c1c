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
from pipeline.settings import Settings, ignore_variables_of_others, misspelled_settings
from pipeline.text import on_its_lines, on_one_line
from tasks import key_commands
from tasks.context import WorkerContext
from tasks.key_arguments import add_arguments
from tasks.remote_client import user_at_host

_EXIT_FAILED: Final = 1
_EXIT_SETTINGS: Final = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tasks.keys", description=__doc__)
    add_arguments(parser)
    asked = parser.parse_args(arguments)
    ignore_variables_of_others()
    misspelled = misspelled_settings()
    if misspelled is not None:
        sys.stderr.write(f"keys: {misspelled}\n")
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
    actor, why = user_at_host(), on_one_line(getattr(asked, "why", ""))
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
                level=asked.level,
                why=why,
            )
            sys.stderr.write(f"{on_its_lines(words)}\n")
            sys.stdout.write(f"{key}\n")
        case "list":
            text, documents = key_commands.listed(context)
            sys.stdout.write(f"{json.dumps(documents) if asked.json else on_its_lines(text)}\n")
        case _:
            sys.stdout.write(f"{on_its_lines(key_commands.revoke(context, actor, asked.key, why))}\n")
    return 0


def protocols_of(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name for name in (part.strip() for part in text.split(",")) if name]


if __name__ == "__main__":
    sys.exit(main())
