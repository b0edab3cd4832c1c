"""The rights of Sluice's user in PostgreSQL: the fewest with which everything works. Another role owns the tables."""

from typing import Any, Final

import psycopg2
from psycopg2.extensions import encrypt_password, parse_dsn
from psycopg2.sql import SQL, Identifier, Literal

from pipeline.errors import SchemaError, in_full
from pipeline.sink.queries import query

_WRITE: Final = ("SELECT", "INSERT", "UPDATE")
_ALL: Final = (*_WRITE, "DELETE")

# By table. Sluice's user deletes neither events nor stored offsets; SELECT on events finds repeats.
RIGHTS: Final[dict[str, tuple[str, ...]]] = {
    "log_events": ("SELECT", "INSERT"),
    "stored_offsets": _WRITE,
    "dead_letters": _WRITE,
    "known_logs": _WRITE,
    "log_marks": ("SELECT", "INSERT", "DELETE"),
    "probes": _WRITE,
    "control_pauses": ("SELECT", "INSERT", "DELETE"),
    "control_partition_pauses": _ALL,
    "control_overrides": _ALL,
    "control_bands": _ALL,
    "control_account_limits": _ALL,
    "api_keys": ("SELECT", "INSERT", "DELETE"),
    "api_keys_version": ("SELECT", "UPDATE"),
    "schema_migrations": ("SELECT",),
    "retention": ("SELECT",),
    "event_ids": ("SELECT",),  # a trigger writes it
}
# They delete what expired, as the owner of the tables: so Sluice's user can delete nothing else.
FUNCTIONS: Final = (
    "delete_expired_events(integer, timestamptz)",
    "delete_expired_dead_letters(integer)",
    "delete_expired_ids(integer, timestamptz)",
    "drop_expired_day()",
    "make_days()",
    "is_by_day()",
    "day_bounds()",
    "day_facts()",
    "unnoted_id(oid)",
)
# Only a user of a table by day needs it, and `table_facts` checks it there.
_UNCHECKED: Final = frozenset({"event_ids"})


def needed_rights(*, makes_marks: bool = True) -> dict[str, list[str]]:
    """The list as parallel columns, for the check of each new connection. `makes_marks`: LOG_KEEP_HOURS is set."""
    left_out = _UNCHECKED if makes_marks else _UNCHECKED | {"log_marks"}
    needed = {table: rights for table, rights in RIGHTS.items() if table not in left_out}
    pairs = [(table, right) for table, rights in needed.items() for right in rights]
    return {"tables": [table for table, _ in pairs], "rights": [right for _, right in pairs]}


def grants(role: str, *, database: str, schema: str) -> list[str]:
    """The statements that give a role its rights."""
    to = f"TO {_quoted(role)}"
    return [
        f"GRANT CONNECT, TEMPORARY ON DATABASE {_quoted(database)} {to}",
        f"GRANT USAGE ON SCHEMA {_quoted(schema)} {to}",
        *(f"GRANT {', '.join(rights)} ON {table} {to}" for table, rights in RIGHTS.items()),
        *(f"GRANT EXECUTE ON FUNCTION {function} {to}" for function in FUNCTIONS),
    ]


def give_rights(cursor: Any, user_url: str) -> str | None:
    """Grant the user of a URL its rights, and make it if it is missing; the password of an existing one stays.

    In the caller's transaction. Returns what was done in words; None if the connection has that user itself. Raises
    SchemaError.
    """
    user = parse_dsn(user_url)
    role = user.get("user")
    if role is None:
        raise SchemaError("DATABASE_URL names no user who could get rights")
    if role == cursor.connection.info.user:
        return None
    try:
        cursor.execute(query("role_exists"), {"role": role})
        is_there, database, schema = cursor.fetchone()
        if not is_there:
            _make_role(cursor, role, user.get("password"))
        for statement in grants(role, database=database, schema=schema):
            cursor.execute(statement)
        cursor.execute(query("missing_rights"), {"role": role, "functions": list(FUNCTIONS), **needed_rights()})
        [missing] = cursor.fetchone()
    except psycopg2.Error as error:
        raise SchemaError(f"the role {role} can't get its rights: {in_full(error)}") from error
    if missing:  # PostgreSQL only warns if somebody grants a right that is not his to grant
        raise SchemaError(
            f"the role {role} can't get its rights: the role of MIGRATE_DATABASE_URL may not grant "
            f"{', '.join(missing)}; their owner may"
        )
    return f"{'granted rights to' if is_there else 'made the role'} {role}"


def _make_role(cursor: Any, role: str, password: str | None) -> None:
    if not password:
        raise SchemaError(f"there is no role {role}, and DATABASE_URL has no password for it: CREATE ROLE {role} LOGIN")
    # Encrypted here: PostgreSQL may log statements.
    secret = encrypt_password(password, role, cursor.connection, "scram-sha-256")
    cursor.execute(SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(role), Literal(secret)))


def _quoted(name: str) -> str:
    """An identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'
