"""The arguments of commands that `python -m pipeline` and `sluice` share. It needs no package: help is quick."""

import argparse

MIGRATE_DETAILS = (
    "Update the database's schema as the role of MIGRATE_DATABASE_URL, and grant the user of DATABASE_URL its rights; "
    "make that user if it is missing. Without MIGRATE_DATABASE_URL: as the user of DATABASE_URL. With EVENTS_BY_DAY, "
    "partition log_events by day. Write RETENTION_DAYS, DEAD_LETTER_DAYS and DEDUP_DAYS into the database, and make "
    "the indexes that they need. It can be interrupted and run again. Exit status: 0, 1 if it failed, 2 if a setting "
    "is wrong."
)


def add_status(parser: argparse.ArgumentParser) -> None:
    """The arguments of `status`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--watch", action="store_true", help="repeat every second until interrupted")


def add_migrate(parser: argparse.ArgumentParser) -> None:
    """The description of `migrate`, which takes no arguments."""
    parser.description = MIGRATE_DETAILS
