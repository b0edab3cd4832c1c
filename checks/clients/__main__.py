"""`python -m checks.clients`: real clients of other languages, their losses and doubles, as a table."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from checks.clients.catalog import CLIENTS, Client
from checks.clients.run import Plan, try_client
from checks.clients.sluice import NotReadyError, new_folder, running_sluice
from checks.clients.table import Result, as_markdown, exit_status
from checks.testbed.kits import Kit, KitError, cache_folder
from stack.servers import ServerError

_MESSAGES = 2000  # from a client in each situation
_PER_SECOND = 500.0  # above the limit, but slow enough that a fault comes before the end


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m checks.clients",
        description="Run real clients of other languages against a Sluice of its own: through a rate limit, a "
        "connection that is cut after its events were stored, and a restart of ingest. Then count the rows in "
        "PostgreSQL.",
        epilog="Each client is fetched by its own package manager into the folder sluice/clients of the user's cache. "
        "The first run therefore takes some minutes more. A client is skipped if this machine lacks what it needs. "
        "Exit status: 0 every client that was tried did what its page in docs/protocols says; 1 one lost or doubled "
        "an event; 2 nothing is proven.",
    )
    parser.add_argument("--list", action="store_true", help="list all clients")
    parser.add_argument("--only", default="", metavar="A,B", help="only these clients; none of them may be skipped")
    parser.add_argument(
        "--messages", type=int, default=_MESSAGES, metavar="N",
        help=f"messages of a client in each situation (default {_MESSAGES:,})",
    )  # fmt: skip
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Try the clients; returns the exit status."""
    asked = parse(words)
    if asked.list:
        print("\n".join(f"{client.name:<22} {client.kit.name:<10} {client.form}" for client in CLIENTS))
        return 0
    names = [name for name in asked.only.split(",") if name]
    unknown = set(names) - {client.name for client in CLIENTS}
    if unknown:
        print(f"clients: no such client: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if asked.messages < 100:
        print("clients: --messages must be at least 100: something must be left to send", file=sys.stderr)
        return 2
    chosen = [client for client in CLIENTS if not names or client.name in names]
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr, flush=True)

    try:
        results = _try_all(chosen, Plan(asked.messages, _PER_SECOND), tell)
    except KeyboardInterrupt:
        print("clients: stopped", file=sys.stderr)
        return 2
    except (ServerError, NotReadyError) as error:
        print(f"clients: could not run: {error}", file=sys.stderr)
        return 2
    print(as_markdown(results))
    return exit_status(results, named=bool(names))


def _try_all(clients: list[Client], plan: Plan, tell: Callable[[str], None]) -> list[Result]:
    kits = {client.kit.name: client.kit for client in clients}
    had = {name: _fetched(kit, tell) for name, kit in kits.items()}
    results = [_result(client, had[client.kit.name]) for client in clients]
    if all(result.skipped for result in results):
        return results
    tell("starting Sluice …")
    folder = new_folder()
    with running_sluice(folder / "system") as sluice:
        for result in results:
            if result.folder is None:
                continue
            tell(f"{result.client.name} …")
            result.outcomes = try_client(result.client, result.folder, sluice, folder / "clients", plan)
            tell(f"{result.client.name}: {result.verdict}")
            for problem in result.problems:
                tell(f"  {problem}")
    if any(result.problems for result in results):
        tell(f"logs and configurations of the clients are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return results


def _fetched(kit: Kit, tell: Callable[[str], None]) -> Path | str:
    """The folder with a kit's installed clients, or the reason why they can't be installed."""
    if missing := kit.missing():
        return f"no {missing}"
    tell(f"fetching {kit.name} …")
    try:
        return kit.installed(cache_folder())
    except (KitError, OSError) as error:
        tell(f"{kit.name}: {error}")
        return f"{kit.name} can't be fetched"


def _result(client: Client, had: Path | str) -> Result:
    if isinstance(had, str):
        return Result(client, skipped=had)
    return Result(client, client.kit.versions(had).get(client.package, "?"), had)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
