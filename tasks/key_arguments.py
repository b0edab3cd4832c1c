"""The arguments of `python -m tasks.keys` and `sluice keys`. It needs no package: help is quick."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    commands = parser.add_subparsers(required=True, dest="command")
    create = commands.add_parser("create", help="make a key, and print it once")
    create.add_argument("name", help="its account: keys with the same name share its limit and its share")
    create.add_argument("--rate", type=float, help="events/s that the account is admitted at most")
    create.add_argument("--protocols", default="", help="names with commas between; all if it is left out")
    create.add_argument(
        "--level", help="the highest level that its requests may have (debug, info, warn, error), with ADMISSION_LEVELS"
    )
    create.add_argument("--days", type=float, help="days until the key expires; never if it is left out")
    create.add_argument("--why", default="no reason given", help="for the list and the control events")
    listing = commands.add_parser("list", help="show all keys, without the keys themselves")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    revoke = commands.add_parser("revoke", help="end a key, or all keys of a name, at once")
    revoke.add_argument("key", help="the id of a key, or a name")
    revoke.add_argument("--why", default="no reason given", help="for the control events")
