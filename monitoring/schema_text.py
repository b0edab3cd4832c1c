"""What each table, column, index and function of the database is for. The catalog says everything else of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class TableText:
    """What a table is for; `columns` and `indexes` by name. Primary keys and unique indexes need no text."""

    about: str
    columns: Mapping[str, str]
    indexes: Mapping[str, str] = field(default_factory=dict)


_ONE_ROW: Final = "always 1: the table has one row at most"
_SET_BY: Final = "who set it"
_WHY: Final = "the reason that was given"
_SINCE: Final = "when it was set"
_LOG_ID: Final = "identity of the event log: its offsets never mix with those of another log"
_PARTITION: Final = "partition of the event log"

# In the order of the page: first what users read, then what only Sluice uses.
TABLES: Final[Mapping[str, TableText]] = {
    "log_events": TableText(
        "The events: one row each, stored once. Sluice inserts rows and never changes them; only retention "
        "deletes them.",
        {
            "event_id": "`eventId` of the client, or the one that ingest made",
            "correlation_id": "`correlationId`; it decides the partition",
            "severity": "TRACE, DEBUG, INFO, WARN, ERROR or FATAL",
            "message": "`message`",
            "source": "`source`: the program or machine that the client names",
            "event_time": "`timestamp`: when it happened, by the client's clock",
            "received_at": "when ingest received it, by ingest's clock",
            "attributes": "`attributes`, a flat object; NULL: the event has none",
            "log_id": _LOG_ID,
            "log_partition": _PARTITION,
            "log_offset": "offset of its record there. A repeat of the event has another offset and no row",
            "request_id": "`X-Request-ID` of the request that brought it; NULL: stored by a version without "
            "request ids",
            "stored_at": "when PostgreSQL stored it, by PostgreSQL's clock: begin of the transaction of its batch. "
            "Retention counts its age from here",
        },
        {
            "log_events_correlation_id": "the events of one operation",
            "log_events_event_time": "a range of times. BRIN: a small index that finds blocks, since events "
            "come nearly "
            "in the order of their times",
            "log_events_stored_at": "what is expired. Only there if `RETENTION_DAYS` is set "
            "([retention.md](retention.md))",
        },
    ),
    "dead_letters": TableText(
        "The rejected records: accepted, and impossible to store as rows. An open one waits for an operator.",
        {
            "id": "number of the dead letter",
            "log_id": f"{_LOG_ID}. If ` before ` and a time follow it, another record has this place since",
            "log_partition": _PARTITION,
            "log_offset": "offset of the record there",
            "raw": "the record as the event log has it: UTF-8 JSON, unless it could not be decoded",
            "reason": "why it is not a row: PostgreSQL's message, what can't be decoded, or `conflict`",
            "sqlstate": "PostgreSQL's error code; NULL: it was not PostgreSQL that refused it",
            "created_at": "when it was kept",
            "tried_at": "when a replay last tried it; NULL: never",
            "replayed_at": "when a replay stored it; NULL: it is open",
        },
        {"dead_letters_open": "what a replay takes next: open ones, those that waited longest first"},
    ),
    "stored_offsets": TableText(
        "How far each partition of each event log is stored. It changes in the transaction of each batch: that makes "
        "storing exactly-once. Never change it: events would be lost or read again.",
        {
            "log_id": _LOG_ID,
            "log_partition": _PARTITION,
            "next_offset": "the stored offset: everything below it is stored, or given up",
            "updated_at": "when the last batch was stored",
            "last_record_offset": "offset of the last stored record; NULL: not known",
            "last_record_digest": "digest of that record: a log that lost its tail has another record there",
            "batch_began_offset": "first offset of the newest batch; NULL: not known",
            "batch_began_at": "when that batch began. The rate policy `drain_time` measures from batch to batch",
        },
    ),
    "retention": TableText(
        "How long events and dead letters are kept, as `python -m pipeline migrate` wrote it. Only the owner of "
        "the tables "
        "may change it.",
        {
            "id": _ONE_ROW,
            "event_days": "days that events are kept; NULL: for ever",
            "letter_days": "days that dead letters are kept; NULL: for ever",
            "id_days": "with `EVENTS_BY_DAY`: days that ids are kept; NULL: for ever",
        },
    ),
    "api_keys": TableText(
        "The API keys of clients ([keys.md](keys.md)). Change them with `sluice keys` only: ingest reads a "
        "mirror in Redis.",
        {
            "id": "the part of a key that is no secret",
            "name": "name of the client: the account of its requests is `key:NAME`",
            "sha256": "SHA-256 of the key; the key itself is stored nowhere",
            "protocols": "the protocols that it may use; empty: all",
            "expires": "when it ends; NULL: never",
            "made_by": "who made it",
            "why": _WHY,
            "since": "when it was made",
            "level": "the highest level that its requests may have; NULL: any",
        },
    ),
    "api_keys_version": TableText(
        "Changes with each change of the keys, so that the mirror in Redis is compared with one value.",
        {"id": _ONE_ROW, "version": "a random value"},
    ),
    "control_pauses": TableText(
        "The pauses of all consumption that operators asked for. Here so that a flush of Redis can't end them.",
        {
            "reason": "name of the pause",
            "paused_by": "who asked for it",
            "why": _WHY,
            "since": "when it began",
        },
    ),
    "control_partition_pauses": TableText(
        "The pauses of one partition each: of operators, and those that a drain found to be necessary.",
        {
            "reason": "name of the pause, as `poison` or `log_gap`",
            "log_partition": "the partition that is paused",
            "paused_by": "who or which process paused it",
            "why": _WHY,
            "since": "when it began",
            "evidence": "of poison: the batch that PostgreSQL refused, shortened; NULL: there is none",
        },
    ),
    "control_overrides": TableText(
        "The rate that an operator set for a time.",
        {
            "id": _ONE_ROW,
            "rate": "events/s",
            "ends": "when it ends by itself",
            "set_by": _SET_BY,
            "why": _WHY,
            "since": _SINCE,
        },
    ),
    "control_bands": TableText(
        "Thresholds and rates that an operator set in place of those of the settings.",
        {
            "id": _ONE_ROW,
            "rate_max": "events/s, in place of `RATE_MAX`",
            "rate_min": "events/s, in place of `RATE_MIN`",
            "lag_degraded": "events, in place of `LAG_DEGRADED`",
            "lag_critical": "events, in place of `LAG_CRITICAL`",
            "set_by": _SET_BY,
            "why": _WHY,
            "since": _SINCE,
        },
    ),
    "control_account_limits": TableText(
        "Limits and weights of accounts that operators set in place of `ACCOUNT_LIMITS` and `ACCOUNT_WEIGHTS`.",
        {
            "account": "the account, as `key:shop` or `192.0.2.7`",
            "rate": "events/s at most; NULL: no limit",
            "weight": "its share as a multiple; NULL: that of the settings",
            "set_by": _SET_BY,
            "why": _WHY,
            "since": _SINCE,
        },
    ),
    "known_logs": TableText(
        "Each event log that was drained into this database. Events of a former log that were not stored are "
        "found by it.",
        {
            "log_id": _LOG_ID,
            "url": "`EVENT_LOG_URL` without its password",
            "name": "on Kafka the topic, on Redis the prefix of the keys",
            "ends": "by partition: the next offset of the log when it was last seen",
            "seen_at": "when it was last seen",
        },
    ),
    "log_marks": TableText(
        "With `LOG_KEEP_HOURS`: how far the partitions of an event log were stored at a time. That long after it, the "
        "log may delete what was stored by then.",
        {
            "log_id": _LOG_ID,
            "marked_at": "PostgreSQL's time",
            "offsets": "by partition: the next offset to store at that time",
        },
    ),
    "event_ids": TableText(
        "With `EVENTS_BY_DAY`: the id of each event, so that it is stored once though no index covers all days. "
        "A trigger of `log_events` writes it in the transaction of each batch, for each writer. Empty otherwise.",
        {
            "event_id": "`event_id` of an event that is stored, or was stored: its partition may be dropped since",
            "stored_at": "`stored_at` of that event: it leads to its partition",
        },
    ),
    "probes": TableText(
        "The row that the prober writes while the breaker is open: if that succeeds, consumption begins again.",
        {"id": _ONE_ROW, "probed_at": "when it last succeeded"},
    ),
    "schema_migrations": TableText(
        "The migrations that were applied to this database.",
        {
            "version": "number of the migration",
            "name": "its file",
            "sha256": "SHA-256 of its text: a file that was changed later is refused",
            "applied_at": "when it was applied",
        },
    ),
}
FUNCTIONS: Final[Mapping[str, str]] = {
    "delete_expired_events": "deletes up to `rows_max` of the oldest expired events that were stored at `since` "
    "or later; "
    "`reached` is where the next call may begin",
    "delete_expired_dead_letters": "deletes the expired ones of the `rows_max` oldest dead letters; "
    "`never_stored` of them "
    "were still open",
    "delete_expired_ids": "deletes up to `rows_max` of the oldest expired ids of `event_ids`, as above; none of an "
    "event that is still stored",
    "drop_expired_day": "drops the oldest partition of `log_events` if all of it expired; `dropped` is its name",
    "make_days": "makes the partitions of today and the next seven days; `made` of them were missing",
    "is_by_day": "whether `log_events` is partitioned by day",
    "day_bounds": "the partitions of `log_events` and their bounds",
    "day_facts": "what a tick of retention looks at; `unnoted` is not looked for any more",
    "unnoted_id": "an event of one partition whose id is not in `event_ids`, if its first or its last one lacks it",
    "oldest_stored": "with `true`: no stored event is older than this; with `false`: where the oldest partition ends",
    "has_index_of_ages": "whether expired events of a partition are found by an index",
    "note_event_ids": "the trigger of `log_events` that writes `event_ids`",
    "follow_event_ids": "the trigger of `log_events` that changes `event_ids` if somebody changes an event's id or "
    "time",
    "copy_event_ids": "a trigger while `log_events` changes over to partitions: as `note_event_ids`",
    "fill_stored_at": "a trigger meanwhile: gives an event of an older worker its time",
}
