"""`python -m checks.runbooks [NAME …]`: acts out runbooks, one after the other, on systems of its own.

Each condition is made on the running system. It must be seen by `python -m pipeline status` and by its alert, and end
by the steps of its page. Kafka needs Java and Maven, the small disk root, and the alerts a prometheus (that of
Alertmanager itself an alertmanager) on the PATH. `--out FOLDER` gets a transcript for each. Exit status 1 if one was
not seen, or did not end.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from checks.runbooks.act import Act, NotActedOutError
from checks.runbooks.pages import SCENARIOS, kind_of
from checks.runbooks.systems import Kind, running
from stack.servers import ServerError


def main(words: list[str] | None = None) -> int:
    """Act out all runbooks, or the named ones."""
    parser = argparse.ArgumentParser(prog="python -m checks.runbooks", description="Act out runbooks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--out", type=Path, help="folder for the transcripts")
    asked = parser.parse_args(words)
    unknown = set(asked.names) - set(SCENARIOS)
    if unknown:
        parser.error(f"no runbook is acted out as {', '.join(sorted(unknown))}")
    names, failed = asked.names or list(SCENARIOS), []
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # its systems are stopped first
    for kind in Kind:
        chosen = [name for name in names if kind_of(name) is kind]
        if chosen:
            failed += _act_out(chosen, asked.out, kind)
    took = f"{(time.monotonic() - began) / 60:.0f} min"
    print(f"not acted out: {', '.join(failed)} ({took})" if failed else f"all were acted out: {len(names)} in {took}")
    if shutil.which("prometheus") is None:
        print("alerts were not looked for: there is no prometheus on the PATH")
    return 1 if failed else 0


def _act_out(names: list[str], out: Path | None, kind: Kind) -> list[str]:
    """Act out runbooks on systems of a kind; returns the names of those that failed."""
    failed, left = [], list(names)
    while left:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with running(kind, Path(folder)) as (system, urls, parts, shell):
                    # A failed runbook may leave its condition behind: the next one gets a new system.
                    while left:
                        name = left.pop(0)
                        if not _acted_out(name, Act(system, urls, parts, **shell), out):
                            failed.append(name)
                            break
            except ServerError as error:  # the other systems may start
                print(f"the system for {', '.join(left)} did not start: {error}", flush=True)
                return [*failed, *left]
    return failed


def _acted_out(name: str, act: Act, out: Path | None) -> bool:
    """Act out one page; print and write its transcript."""
    problem = None
    began = time.monotonic()
    try:
        act.await_scrapes()
        for scenario in SCENARIOS[name]:
            act.note(scenario.__doc__ or name)
            scenario(act)
    except Exception as error:  # one page must not end the others
        problem = str(error) if isinstance(error, NotActedOutError) else repr(error)
        act.note(f"FAILED: {problem}")
    text = "\n".join(act.lines)
    print(f"=== {name} ({time.monotonic() - began:.0f} s)\n{text}", flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.txt").write_text(text, encoding="utf-8")
    return problem is None


if __name__ == "__main__":
    sys.exit(main())
