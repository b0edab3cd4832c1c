"""Closed vocabularies: queues, pause reasons, control events and Redis keys, each declared once."""

from enum import StrEnum
from typing import Final, TypeVar


class Queue(StrEnum):
    """Celery queues."""

    BATCHES = "batches"  # drain hints; the only queue that is ever paused
    CONTROL = "control"  # regulate, probe and the sender of hints


class Mode(StrEnum):
    """What the lag means for the rate."""

    NORMAL = "normal"  # lag below the lower threshold: full rate
    DEGRADED = "degraded"  # between the thresholds: the rate falls with the lag
    CRITICAL = "critical"  # above the upper threshold: the floor
    UNKNOWN = "unknown"  # the lag could not be read: the last rate holds, then decays


class PauseReason(StrEnum):
    """Why consumption is paused. Several may hold at once; it resumes when none does."""

    BREAKER = "breaker"  # the circuit breaker is open; lifted by the prober
    OPERATOR = "operator"  # somebody asked for it; lifted by hand
    POISON = "poison"  # too many dead letters in a row; lifted by hand
    LOG_GAP = "log_gap"  # the log lost events that were never stored; lifted by hand
    UNKNOWN = "unknown"  # a newer version's reason, which this one can't name: it pauses all the same; lifted by hand


class Health(StrEnum):
    """How the whole system is, in one word; the same word in each place that shows it."""

    HEALTHY = "healthy"  # nothing is wrong
    DEGRADED = "degraded"  # it serves, but something is wrong
    CRITICAL = "critical"  # events are not taken or not stored
    UNKNOWN = "unknown"  # the state is not known: its data is too old, or nothing answers


class Severity(StrEnum):
    """How bad one problem is."""

    CRITICAL = "critical"
    DEGRADED = "degraded"


class LoopName(StrEnum):
    """Loops of a process that must not end, as health, logs and metrics name them."""

    FOLLOWER = "control follower"  # reads the control state after every event; in ingest and in workers
    APPENDER = "appender"  # appends requests to the event log; in ingest
    LEASES = "lease taker"  # asks the bucket for tokens; in ingest
    HISTORY = "history writer"  # writes what the page draws; in ingest
    PAGE = "page writer"  # writes to the open pages; in ingest
    CONSUMER = "pause timer"  # compares what a worker consumes with the pauses; in workers of `batches`
    QUEUE = "queue consumer"  # takes messages out of a worker's queue; it fails where some wait and it takes none
    QUEUE_WATCH = "queue watch"  # looks whether the queue consumer takes what waits; in workers


class ProblemCode(StrEnum):
    """Which problem the judge of health found; beside these come the codes of alarms."""

    LOG_DOWN = "log_down"  # the event log does not answer: clients get 503
    LOG_FULL = "log_full"  # the event log is at its limit: clients get 503
    STORE_DOWN = "store_down"  # the control store does not answer: what it knows is unknown
    BUCKET_AWAY = "bucket_away"  # an ingest process admits its share of the last known rate
    DATABASE_SILENT = "database_silent"  # PostgreSQL did not answer the reader
    BREAKER_OPEN = "breaker_open"  # PostgreSQL failed, and nothing is stored
    PAUSED = "paused"  # somebody or something paused consumption
    PAUSES_UNKNOWN = "pauses_unknown"  # the control store was flushed, and not restored yet
    CONTROLLER_SILENT = "controller_silent"  # no rate was published for three periods
    NO_PROGRESS = "no_progress"  # events wait, and none was stored for too long
    BEHIND = "behind"  # the lag is above one of its thresholds
    LOOP = "loop"  # a loop of an ingest process fails or stands still
    REFUSING = "refusing"  # more than a few of the offered events were refused lately (REFUSED_SECONDS)


class AlarmCode(StrEnum):
    """Which problem a tick of the control loop found. A reader shows a code that it does not know as it is."""

    LAG_UNKNOWN = "lag_unknown"  # neither the log nor PostgreSQL says how far the log was consumed
    OFFSETS_UNKNOWN = "offsets_unknown"  # PostgreSQL did not give the stored offsets: the lag is by the log's word
    NOT_RESTORED = "not_restored"  # the reasons to pause are lost, and PostgreSQL did not give them back
    LOOP_FAILS = "loop_fails"  # a thread or timer of a worker that must not end fails, or no longer comes round
    CLOCKS_DIFFER = "clocks_differ"  # a wall clock is more than a second from the control store's: what is shown is off
    FORMER_LOG = "former_log"  # the log of earlier settings has events that are not stored
    LOG_BEHIND_STORED = "log_behind_stored"  # a partition would give offsets again that PostgreSQL has stored
    SCHEMA_REFUSED = "schema_refused"  # the database's schema is newer than this version, was changed, or can't be made
    STANDS_STILL = "stands_still"  # why a partition with events has stored none for long
    DRAINER_NOT_ENDED = "drainer_not_ended"  # a drain that stands still could not be ended on the server
    PARTITION_AWAY = "partition_away"  # one partition of the log can't be asked: it takes nothing and gives nothing
    LOG_SET_UP = "log_set_up"  # the log works, but somebody must change how it is set up


# Reason of a dead letter whose eventId is stored with other content. Any other reason is PostgreSQL's or the decoder's.
LETTER_CONFLICT: Final = "conflict"


class BreakerState(StrEnum):
    """The breaker of the whole system, as operators see it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"  # the prober is asking PostgreSQL right now
    UNKNOWN = "unknown"  # the control store is away or was flushed


class ControlEventKind(StrEnum):
    """What happened in the control loop."""

    UNKNOWN = "unknown"  # a newer version recorded it; its data says `kind`, by which that version names it
    RATE_CHANGED = "rate_changed"
    BREAKER_OPENED = "breaker_opened"
    BREAKER_CLOSED = "breaker_closed"
    PAUSED = "paused"  # a reason was added
    RESUMED = "resumed"  # a reason was lifted
    STATE_RESTORED = "state_restored"  # regulate rebuilt the control state after a flush
    OVERRIDE_SET = "override_set"  # somebody set a rate by hand
    OVERRIDE_ENDED = "override_ended"  # its time was up, or somebody cleared it
    BANDS_SET = "bands_set"  # somebody set other thresholds, or went back to those of the settings
    GAP_SKIPPED = "gap_skipped"  # somebody gave up the offsets of a hole in the log
    POISON_ACCEPTED = "poison_accepted"  # somebody let a batch be stored whose records are refused in great number
    DEAD_LETTERS_REPLAYED = "dead_letters_replayed"  # somebody had dead letters tried once more
    BEGAN_LATE = "began_late"  # nothing of a partition was stored, and the log no longer holds its first offsets
    DRAINER_TERMINATED = "drainer_terminated"  # regulate ended a backend that held a partition without progress


_Word = TypeVar("_Word", bound=StrEnum)


def known_word(vocabulary: type[_Word], word: str) -> _Word:
    """A word that was read, as one of a vocabulary that has `unknown`: which it is where a newer version wrote it."""
    try:
        return vocabulary(word)
    except ValueError:
        return vocabulary("unknown")


# Keys on the control server (REDIS_URL). All carry the prefix of Settings.key_prefix.
KEY_RATE: Final = "rate"  # hash: version, rate, mode, lag, times; written by publish_rate.lua and pause.lua
KEY_PAUSE: Final = "pause"  # hash: reason -> generation and text; `restored` marks it as complete
KEY_GENERATION: Final = "pause:generation"  # integer: grows with every change of the set of reasons
KEY_EVENTS: Final = "events"  # stream, bounded: control events
KEY_OVERRIDE: Final = "override"  # hash: rate, until, by, why, since
KEY_BANDS: Final = "bands"  # hash: rate_max, rate_min, lag_degraded, lag_critical, by, why, since
KEY_BUCKET: Final = "bucket"  # hash: tokens, time, version
KEY_COUNTERS: Final = "counters"  # hash: what processes of all kinds count, for the metrics of the whole system
KEY_COUNTERS_SENDER: Final = "counters:sender"  # string for each sender, expires: number of its last addition
KEY_FACTS: Final = "facts"  # string with time to live: what is asked of PostgreSQL now and then, as JSON
KEY_PROCESSES: Final = "processes"  # sorted set: ingest process -> time of its last lease call
KEY_FLOOR: Final = "floor"  # hash for each log_id: life, fence, incarnation, complete, partition -> offset
KEY_TROUBLES: Final = "troubles"  # hash, expires: process -> what is wrong with it, as JSON
KEY_LEASE: Final = "lease"  # string with time to live, one for each named lease
KEY_PROGRESS: Final = "progress"  # hash for each log_id, expires: partition -> offset and since when it stands there
KEY_HISTORY: Final = "history"  # stream, bounded, expires: one entry a second of what the live page draws
KEY_HISTORY_TOTALS: Final = "history:totals"  # hash, expires: what all ingest processes have counted since a flush

# Keys on the log server (EVENT_LOG_URL=redis://…), with the same prefix.
KEY_LOG_ID: Final = "log:id"  # string: `<uuid>.<number of partitions>` of this log
KEY_LOG_STREAM: Final = "log:stream"  # stream for each partition: `log:stream:0` …
KEY_LOG_COMMITTED: Final = "log:committed"  # hash: partition -> next offset to read, for lag
KEY_LOG_ENDS: Final = "log:ends"  # hash: incarnation, `e<partition>` -> its end, `f<partition>` -> its floor


class DropReason(StrEnum):
    """Why a worker threw away a message of its queue. Tasks are hints and ticks: the next one does the work."""

    MALFORMED = "malformed"  # no JSON, or no message of Celery's: something else wrote into the queue
    UNKNOWN_TASK = "unknown_task"  # a task that this worker does not know: another version's, or another application's
    ARGUMENTS = "arguments"  # the task takes no such arguments, or there is no such partition
    EXPIRED = "expired"  # the sender gave it an expiry by its own wall clock; Sluice's own messages have none
    REVOKED = "revoked"  # somebody revoked it


# Leases
LEASE_REGULATE: Final = "regulate"
LEASE_PROBE: Final = "probe"  # held while the prober asks PostgreSQL: the breaker reads half-open meanwhile
LEASE_HISTORY: Final = "history"  # the ingest process that writes this second's entry of the history
