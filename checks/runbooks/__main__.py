"""`python -m checks.runbooks [NAME …]`: acts out runbooks, one after the other, on a system of its own
(two need another one, with a password for operators and signed messages).

Each condition is made on the running system. It must be seen by `python -m pipeline status`, and end by the steps of
its page. `--out FOLDER` gets a transcript for each. Exit status 1 if one was not seen, or did not end.
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

from checks.runbooks.act import Act, NotActedOutError
from checks.runbooks.scenarios import GUARDED, SCENARIOS
from stack.config import StackConfig, environ_of_its_own
from stack.system import System
from tasks import signing

# Limits that are reached sooner, so that all of it takes minutes.
SETTINGS: Final = {
    "REFUSED_SECONDS": "10",
    "LAG_DEGRADED": "500",
    "LAG_CRITICAL": "20000",
    "NO_PROGRESS_SECONDS_MAX": "10",
    "POISON_RUN_RECORDS_MAX": "100",
    "RETENTION_DAYS": "30",
    "RETENTION_SECONDS": "5",
}


def main(words: list[str] | None = None) -> int:
    """Act out all of them, or those that are named."""
    parser = argparse.ArgumentParser(prog="python -m checks.runbooks", description="Act out runbooks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--out", type=Path, help="folder for the transcripts")
    asked = parser.parse_args(words)
    unknown = set(asked.names) - set(SCENARIOS)
    if unknown:
        parser.error(f"no runbook is acted out as {', '.join(sorted(unknown))}")
    names, failed = asked.names or list(SCENARIOS), []
    for is_guarded in (False, True):
        chosen = [name for name in names if (name in GUARDED) is is_guarded]
        if chosen:
            failed += _act_out(chosen, asked.out, is_guarded=is_guarded)
    print(f"not acted out: {', '.join(failed)}" if failed else "all were acted out")
    return 1 if failed else 0


def _act_out(names: list[str], out: Path | None, *, is_guarded: bool) -> list[str]:
    """Act out runbooks on one system; returns the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        settings = SETTINGS | (_guards(Path(folder)) if is_guarded else {})
        with environ_of_its_own(SLUICE_HOME=folder, PROMETHEUS="no", **settings):
            system = System(StackConfig.from_environ("redis"))
            urls = system.start(threading.Event())
            try:
                return [name for name in names if not _acted_out(name, Act(system, urls), out)]
            finally:
                system.stop()


def _guards(folder: Path) -> dict[str, str]:
    """Settings of a system with a password for operators and signed messages."""
    key, certificate = signing.create("workers", folder / "signing", days=100)
    return {
        "OPERATOR_PASSWORD": "the-right-password",
        "SIGNING_KEY_FILE": str(key),
        "SIGNING_CERT_FILE": str(certificate),
        "SIGNING_CERT_FOLDER": str(certificate.parent),
    }


def _acted_out(name: str, act: Act, out: Path | None) -> bool:
    """Act out one page; print and write its transcript."""
    problem = None
    try:
        for scenario in SCENARIOS[name]:
            act.note(scenario.__doc__ or name)
            scenario(act)
    except Exception as error:  # one page must not end the others
        problem = str(error) if isinstance(error, NotActedOutError) else repr(error)
        act.note(f"FAILED: {problem}")
    text = "\n".join(act.lines)
    print(f"=== {name}\n{text}", flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.txt").write_text(text, encoding="utf-8")
    return problem is None


if __name__ == "__main__":
    sys.exit(main())
