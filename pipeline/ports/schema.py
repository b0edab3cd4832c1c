"""The schema of the database, which a newer version of Sluice updates."""

from typing import Protocol


class Schema(Protocol):
    """The database's schema; each call uses a connection of its own."""

    def migrate(self, *, wait_seconds: float) -> list[str]:
        """Apply what is missing; returns the names of what was applied.

        Any number of processes may call this at once: one applies, the others wait for up to `wait_seconds`. Raises
        SchemaError if the schema is not one of this version or refuses a change, SchemaNewerError if it is newer.
        Raises SinkUnavailableError.
        """

    def partition_by_day(self) -> list[str]:
        """Partition the table of events by day, while events are stored, and make the next days' partitions.

        A call that was interrupted is simply repeated. It also makes good what a partitioned table lacks. Returns what
        was done in words. Raises SchemaError if the table has what can't be kept, SinkUnavailableError also if another
        process does it now or another session locks the table for minutes.
        """

    def set_retention(
        self, *, event_days: int | None, letter_days: int | None, id_days: int | None = None
    ) -> list[str]:
        """Set how long events, dead letters and ids are kept (None: for ever), and make the indexes that expiry needs.

        Events are stored while the index is made, which takes minutes on a large table. A call that was interrupted is
        simply repeated. Returns what was done in words. Raises SchemaError if only an operator can do it,
        SinkUnavailableError also if another process does it now.
        """

    def missing(self) -> list[str]:
        """Names of what an older version's schema lacks; empty if there is no schema yet. Only reads.

        Raises SinkUnavailableError.
        """

    def check_same_database(self, user_url: str) -> None:
        """Raise SchemaError if the URL leads to another database, SinkUnavailableError if that can't be found out."""

    def give_rights(self, user_url: str) -> str | None:
        """Give the user of a URL the fewest rights with which Sluice works; make the user if it is missing.

        Returns what was done in words; None if the user owns the schema. Raises SchemaError, SinkUnavailableError.
        """
