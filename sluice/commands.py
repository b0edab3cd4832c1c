"""What each command of `sluice` calls. Modules are imported by the command that needs them."""

# ruff: noqa: PLC0415
import platform
import sys
from argparse import Namespace

from pipeline import __version__
from pipeline.running import CODE, IS_CHECKOUT


def up(_asked: Namespace, words: list[str]) -> int:
    """Start a system on this machine."""
    return _stack("up", words)


def down(_asked: Namespace, _words: list[str]) -> int:
    """Stop it."""
    return _stack("stop", [])


def env(_asked: Namespace, _words: list[str]) -> int:
    """Print its addresses."""
    return _stack("env", [])


def logs(_asked: Namespace, words: list[str]) -> int:
    """Follow the log of a program."""
    return _stack("logs", words)


def _stack(command: str, words: list[str]) -> int:
    from stack.__main__ import main

    return main([command, *words], program="sluice")


def status(asked: Namespace, words: list[str]) -> int:
    """Show the state of the whole system, or of the programs on this machine."""
    if asked.programs:
        return _stack("status", [])
    from pipeline.__main__ import main

    return main(["status", *words])


def migrate(_asked: Namespace, _words: list[str]) -> int:
    """Update the schema of the database."""
    from pipeline.__main__ import main

    return main(["migrate"])


def send(_asked: Namespace, words: list[str]) -> int:
    """Send events from files."""
    from ingest.client.send import main

    return main(words)


def keys(_asked: Namespace, words: list[str]) -> int:
    """Make, list or revoke API keys."""
    from tasks.keys import main

    return main(words)


def gap(asked: Namespace, _words: list[str]) -> int:
    """Show a hole in the event log, or go on behind it."""
    if asked.skip is None:
        if asked.dry_run or asked.why:
            sys.stderr.write("sluice gap: --dry-run and --why are for --skip FROM TO, which is missing\n")
            return 64
        return _celery("inspect", "gap", str(asked.partition))
    from tasks.remote import is_dry_run

    why = " ".join(asked.why.split())
    if is_dry_run(why):
        sys.stderr.write(f"sluice gap: --why {why} is no reason; --dry-run is an option of its own\n")
        return 64
    dry_run = ["--dry-run"] if asked.dry_run else []
    offsets = [str(offset) for offset in asked.skip]
    # Behind `--` Celery finds no option of its own, and in one word the worker finds no --dry-run.
    return _celery("control", "skip_gap", "--", *dry_run, str(asked.partition), *offsets, *([why] if why else []))


def _celery(*words: str) -> int:
    """Celery's own command line. Its application is imported first: Celery would look for it in the current folder."""
    from celery.bin.celery import celery

    import tasks.app  # noqa: F401

    try:
        celery.main(args=["-A", "tasks.app", *words], prog_name="celery")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


def doctor(asked: Namespace, _words: list[str]) -> int:
    """Look at settings, servers and this machine."""
    from sluice.doctor import main

    return main(asked)


def docs(asked: Namespace, _words: list[str]) -> int:
    """Serve the documentation, or only build it."""
    from sluice.documentation import main

    return main(asked)


def completion(asked: Namespace, _words: list[str]) -> int:
    """Print the completion for a shell."""
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["sluice"], shell=asked.shell))
    return 0


def version(_asked: Namespace, _words: list[str]) -> int:
    """Print the version, and where this code is."""
    place = "checkout" if IS_CHECKOUT else "installed in"
    sys.stdout.write(f"sluice {__version__}, Python {platform.python_version()}, {place} {CODE}\n")
    return 0
