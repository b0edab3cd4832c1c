"""Copies the API keys from PostgreSQL, which has them, to the mirror that ingest reads."""

from typing import Final

from pipeline.ports.keys import mirrored_version
from tasks.context import WorkerContext

_TRIES: Final = 3  # another process may change the mirror at the same time


def are_equal(mirrored: str | None, stored: str) -> bool:
    """Whether the mirror and PostgreSQL have the same keys, by their versions."""
    return mirrored == mirrored_version(stored)


def sync_keys(context: WorkerContext) -> bool:
    """Make the mirror equal to PostgreSQL; returns whether it was different.

    Keys that were revoked in the mirror alone are deleted in PostgreSQL first. Raises SinkUnavailableError,
    StoreUnavailableError.
    """
    if are_equal(context.control_store.state().keys_version, context.operators.keys_version()):
        return False
    for _ in range(_TRIES):
        mirrored = context.keys.load()
        if mirrored is not None and mirrored.revoked:
            context.operators.delete_keys(mirrored.revoked)
        stored = context.operators.load_keys()
        before = None if mirrored is None else mirrored.version
        if context.keys.replace(stored.keys, stored.version, instead_of=before):
            return True
    return False  # the next tick compares them again
