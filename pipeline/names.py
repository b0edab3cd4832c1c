"""Closed vocabularies: queues, pause reasons, control events and Redis keys, each declared once."""

from enum import IntEnum, StrEnum
from typing import Final, TypeVar

# Of LOG_FORMAT and LOG_LEVEL.
LOG_FORMATS: Final = ("human", "json")  # lines for people; one JSON object a line
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


class Queue(StrEnum):
    """Celery queues."""

    BATCHES = "batches"  # drain hints; the only queue that is ever paused
    CONTROL = "control"  # regulate, probe and the task that sends hints


DRAIN_TASK: Final = "sluice.drain"  # a hint for a partition, and the only task of the queue `batches`


class Mode(StrEnum):
    """The mode of the rate policy, by the lag."""

    NORMAL = "normal"  # lag below the lower threshold: full rate
    DEGRADED = "degraded"  # between the thresholds: the rate falls with the lag
    CRITICAL = "critical"  # above the upper threshold: the lowest rate
    UNKNOWN = "unknown"  # the lag could not be read: the last rate stays, then decays


class Level(IntEnum):
    """The importance of a body, by its highest severity or its header Priority. Low levels are refused first."""

    DEBUG = 0  # and TRACE
    INFO = 1
    WARN = 2
    ERROR = 3  # and FATAL; also every body while ADMISSION_LEVELS is off

    @property
    def label(self) -> str:
        """The word for metrics and answers."""
        return self.name.lower()


LEVEL_HIGHEST: Final = Level.ERROR


class ProtocolName(StrEnum):
    """The protocols in which clients send events."""

    EVENTS = "events"  # Sluice's own JSON and NDJSON
    LINES = "lines"  # any JSON objects, or lines of text
    OTLP = "otlp"  # OpenTelemetry's logs over HTTP
    ELASTICSEARCH = "elasticsearch"  # the bulk API
    LOKI = "loki"  # Loki's push API
    SPLUNK = "splunk"  # the HTTP Event Collector
    GELF = "gelf"  # Graylog's format over HTTP


OTHER_PROTOCOLS: Final = tuple(name for name in ProtocolName if name is not ProtocolName.EVENTS)


class RecordOutcome(StrEnum):
    """What becomes of the records that clients send in protocols of others."""

    ACCEPTED = "accepted"  # an event that is durable
    REFUSED = "refused"  # 429 or 503; a body that was refused unread counts as one
    REJECTED = "rejected"  # a record that can't become an event; the others of its body are accepted


class LimitedBy(StrEnum):
    """What limits admission, as the answer 429 says it."""

    RATE = "rate"  # the rate that the policy decided
    LEVEL = "level"  # the rate too, but a body of a higher level would have been admitted
    SHARE = "share"  # the share or the limit of the account that sent the request
    BREAKER = "breaker"  # the circuit breaker is open: at most the lowest rate
    OVERRIDE = "override"  # a rate that an operator set for a time


class KeyRefusal(StrEnum):
    """Why a request was refused for its API key (INGEST_KEYS)."""

    MISSING = "missing"  # it has none
    UNKNOWN = "unknown"  # there is no such key: it was revoked, or never made
    EXPIRED = "expired"  # its time is up
    PROTOCOL = "protocol"  # it is for other protocols
    NOT_READY = "not_ready"  # this process does not know the keys yet: 503

    @property
    def words(self) -> str:
        """What the client gets as the reason."""
        return _KEY_REFUSALS[self]


_KEY_REFUSALS: Final = {
    KeyRefusal.MISSING: "this request needs an API key",
    KeyRefusal.UNKNOWN: "the API key is not valid",
    KeyRefusal.EXPIRED: "the API key has expired",
    KeyRefusal.PROTOCOL: "the API key is for other protocols",
    KeyRefusal.NOT_READY: "this process does not know the API keys yet",
}


class ConnectionRefusal(StrEnum):
    """The limit that a connection to ingest was above."""

    PROCESS = "process"  # INGEST_CONNECTIONS_MAX
    ADDRESS = "address"  # INGEST_CONNECTIONS_PER_ADDRESS_MAX
    OPERATORS = "operators"  # that of OPERATOR_PORT

    @property
    def words(self) -> str:
        """What the client gets as the reason."""
        return _CONNECTION_REFUSALS[self]


_CONNECTION_REFUSALS: Final = {
    ConnectionRefusal.PROCESS: "this process has too many connections",
    ConnectionRefusal.ADDRESS: "your address has too many connections to this process",
    ConnectionRefusal.OPERATORS: "this process has too many connections to this port",
}


class TlsRefusal(StrEnum):
    """Why a connection to ingest was refused for its client's certificate (INGEST_TLS_CLIENT)."""

    MISSING = "missing"  # it has none
    EXPIRED = "expired"  # or it is not valid yet
    REVOKED = "revoked"  # by a list in INGEST_TLS_CLIENT_CA
    UNKNOWN_CA = "unknown_ca"  # no authority of INGEST_TLS_CLIENT_CA has signed it
    REVOCATIONS = "revocations"  # the list of revoked certificates of its authority is missing, or has expired
    INVALID = "invalid"  # it is not for clients, for example

    @property
    def words(self) -> str:
        """What the log says of it."""
        return _TLS_REFUSALS[self]


_TLS_REFUSALS: Final = {
    TlsRefusal.MISSING: "it has no certificate",
    TlsRefusal.EXPIRED: "its certificate has expired, or is not valid yet",
    TlsRefusal.REVOKED: "its certificate was revoked",
    TlsRefusal.UNKNOWN_CA: "no authority in INGEST_TLS_CLIENT_CA has signed its certificate",
    TlsRefusal.REVOCATIONS: "INGEST_TLS_CLIENT_CA has no valid list of revoked certificates of its authority",
    TlsRefusal.INVALID: "its certificate is not valid for a client",
}


class OperatorRefusal(StrEnum):
    """Why a request for what operators see was refused (OPERATOR_PASSWORD)."""

    MISSING = "missing"  # it has no password: each browser's first request, for example
    WRONG = "wrong"  # it has another one

    @property
    def words(self) -> str:
        """What the client gets as the reason."""
        return _OPERATOR_REFUSALS[self]


_OPERATOR_REFUSALS: Final = {
    OperatorRefusal.MISSING: "this address is for operators, and needs their password",
    OperatorRefusal.WRONG: "the operators' password is wrong",
}


class PauseReason(StrEnum):
    """Why consumption is paused. Several reasons may be active at once; consumption resumes when none is."""

    BREAKER = "breaker"  # the circuit breaker is open; lifted by the prober
    OPERATOR = "operator"  # an operator paused consumption; lifted by an operator
    POISON = "poison"  # too many dead letters in a row; lifted by an operator
    LOG_GAP = "log_gap"  # the log no longer has the next events to store; lifted by an operator
    UNKNOWN = "unknown"  # a newer version's reason, unknown here: it pauses as well; lifted by an operator


class Health(StrEnum):
    """The state of the whole system in one word; the same word in each place that shows it."""

    HEALTHY = "healthy"  # there is no problem
    DEGRADED = "degraded"  # it serves, but there is a problem
    CRITICAL = "critical"  # events are not accepted or not stored
    UNKNOWN = "unknown"  # the state is unknown: its data is too old, or no server answers


class SinkName(StrEnum):
    """The name of the sink in messages, in the middle of a sentence."""

    POSTGRESQL = "PostgreSQL"  # EVENT_SINK_URL is empty
    ARCHIVE = "the archive"  # files: EVENT_SINK_URL is file:///…


class Severity(StrEnum):
    """The severity of one problem."""

    CRITICAL = "critical"
    DEGRADED = "degraded"


class LoopName(StrEnum):
    """Loops of a process that must not end. Health, logs and metrics use these names."""

    FOLLOWER = "control follower"  # reads the control state after every event; in ingest and in workers
    REPORTS = "problem reports"  # reports the process' problems to the control store; in ingest and in workers
    APPENDER = "appender"  # appends requests to the event log; in ingest
    LEASES = "lease taker"  # requests tokens from the bucket; in ingest
    HISTORY = "history writer"  # writes the data for the page's charts; in ingest
    ACCOUNTS = "account reports"  # counts what accounts offer, and reports it; in ingest
    PAGE = "page writer"  # writes to the open pages; in ingest
    CERTIFICATE = "certificate watch"  # loads new files of certificates, and ends connections of the old; in ingest
    CONSUMER = "pause timer"  # compares the queues that a worker consumes with the pauses; in workers of `batches`
    QUEUE = "queue consumer"  # takes messages from a worker's queue; fails if messages wait and it takes none
    DROPS = "count of dropped messages"  # adds them to the system's counters; in workers
    QUEUE_WATCH = "queue watch"  # checks that the queue consumer takes the waiting messages; in workers


class ProblemCode(StrEnum):
    """Problems that the health judge finds; alarm codes exist in addition."""

    LOG_DOWN = "log_down"  # the event log does not answer: clients get 503
    LOG_FULL = "log_full"  # the event log is at its limit: clients get 503
    STORE_DOWN = "store_down"  # the control store does not answer: its state is unknown
    BUCKET_UNAVAILABLE = "bucket_away"  # an ingest process admits its share of the last known rate
    DATABASE_SILENT = "database_silent"  # PostgreSQL did not answer the reader
    BREAKER_OPEN = "breaker_open"  # PostgreSQL failed, and nothing is stored
    PAUSED = "paused"  # an operator or a process paused consumption
    PAUSES_UNKNOWN = "pauses_unknown"  # the control store was flushed, and not restored yet
    CONTROLLER_SILENT = "controller_silent"  # no rate was published for three periods
    NO_PROGRESS = "no_progress"  # events wait, and no event was stored for too long
    BEHIND = "behind"  # the lag is above one of its thresholds
    LOOP = "loop"  # a loop of an ingest process fails or hangs
    REFUSING = "refusing"  # more than a few of the offered events were refused lately (REFUSED_SECONDS)


class AlarmCode(StrEnum):
    """Problems that a tick of the control loop finds. A reader shows an unknown code unchanged."""

    LAG_UNKNOWN = "lag_unknown"  # neither the log nor PostgreSQL knows how far the log was consumed
    OFFSETS_UNKNOWN = "offsets_unknown"  # PostgreSQL did not return the stored offsets: the log's commits count
    NOT_RESTORED = "not_restored"  # the reasons to pause are lost, and PostgreSQL did not return them
    LOOP_FAILS = "loop_fails"  # a thread or timer of a worker that must not end fails or hangs
    CLOCKS_DIFFER = "clocks_differ"  # a wall clock is over a second off the control store's: shown times are wrong
    FORMER_LOG = "former_log"  # the log of earlier settings has events that are not stored
    BEGAN_LATE = "began_late"  # earlier records of the log are not in this sink: another database, or they were deleted
    LOG_BEHIND_STORED = "log_behind_stored"  # a partition would reuse offsets that PostgreSQL has stored
    SCHEMA_REFUSED = "schema_refused"  # the database's schema (newer than this version, changed) can't be used
    # The database answers and can't be used (a password, rights, its encoding, a standby, a pooler), or the archive
    DATABASE_REFUSED = "database_refused"
    FEW_SESSIONS = "few_sessions"  # PostgreSQL allows fewer sessions than the processes have: drains may not start
    STANDS_STILL = "stands_still"  # the reason why a partition with events has stored none for long
    DRAINER_NOT_ENDED = "drainer_not_ended"  # a drain without progress could not be ended on the server
    PARTITION_UNAVAILABLE = "partition_away"  # one partition of the log neither accepts nor returns events
    REPLICAS_MISSING = "replicas_missing"  # replicas of the log that were asked for are not there, or lag behind
    LOG_TAIL_LOST = "log_tail_lost"  # the log came back without accepted events that were not stored
    RETENTION = "retention"  # expired events or dead letters are not deleted, or too slowly
    LOG_SET_UP = "log_set_up"  # the log works, but an operator must change its configuration


# Because of these, the sink stores nothing until an operator changes something. An open breaker is then an effect.
REFUSALS: Final = frozenset({AlarmCode.SCHEMA_REFUSED, AlarmCode.DATABASE_REFUSED})

# Reason of a dead letter whose eventId is stored with other content. Other reasons come from PostgreSQL or the decoder.
LETTER_CONFLICT: Final = "conflict"


class BreakerState(StrEnum):
    """The state of the whole system's breaker, as operators see it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"  # the prober is trying a write to PostgreSQL
    UNKNOWN = "unknown"  # the control store is unavailable or was flushed


class ControlEventKind(StrEnum):
    """Kinds of control events."""

    UNKNOWN = "unknown"  # a newer version recorded it; the field `kind` of its data has that version's name
    RATE_CHANGED = "rate_changed"  # another rate is admitted, or for another reason
    BREAKER_OPENED = "breaker_opened"  # calls of the sink failed repeatedly
    BREAKER_CLOSED = "breaker_closed"  # a small write to the sink succeeded
    PAUSED = "paused"  # a reason was added
    RESUMED = "resumed"  # a reason was lifted
    STATE_RESTORED = "state_restored"  # regulate rebuilt the control state after a flush
    OVERRIDE_SET = "override_set"  # an operator set a rate
    OVERRIDE_ENDED = "override_ended"  # its time was up, or an operator cleared it
    BANDS_SET = "bands_set"  # an operator set other thresholds, or returned to those of the settings
    KEY_MADE = "key_made"  # an operator made an API key
    KEY_REVOKED = "key_revoked"  # an operator revoked API keys
    ACCOUNT_LIMIT_SET = "account_limit_set"  # an operator set the limit and the weight of an account
    ACCOUNT_LIMIT_ENDED = "account_limit_ended"  # an operator ended them: those of the settings apply again
    GAP_SKIPPED = "gap_skipped"  # an operator gave up the offsets of a hole in the log
    POISON_ACCEPTED = "poison_accepted"  # an operator had a batch stored although many of its records are refused
    DEAD_LETTERS_REPLAYED = "dead_letters_replayed"  # an operator had dead letters tried again
    BEGAN_LATE = "began_late"  # nothing of a partition was stored here, and earlier records were elsewhere or are lost
    LATE_BEGIN_ACCEPTED = "late_begin_accepted"  # an operator said that the sink is meant to lack these records
    LOG_TAIL_LOST = "log_tail_lost"  # the event log came back without accepted events that were not stored
    DRAINER_TERMINATED = "drainer_terminated"  # regulate ended a backend that held a partition without progress


_Word = TypeVar("_Word", bound=StrEnum)


def known_word(vocabulary: type[_Word], word: str) -> _Word:
    """The member for a word that was read; `unknown` if it is a word of a newer version."""
    try:
        return vocabulary(word)
    except ValueError:
        return vocabulary("unknown")


# Keys on the control server (REDIS_URL). All carry the prefix of Settings.key_prefix.
# hash: version, rate, mode, lag, times, consumption, alarms; the policy's record (policy, policy_at), reason and
# event_ratio; the accounts' shares (shares, shares_at); the rate of the last control event about it (recorded_rate,
# recorded_version). publish_rate.lua writes it, and so do the scripts that change the effective rate (settle_rate in
# control_lib.lua).
KEY_RATE: Final = "rate"
KEY_PAUSE: Final = "pause"  # hash: reason -> generation and text; `restored` marks it as complete
KEY_GENERATION: Final = "pause:generation"  # integer: grows with every change of the set of reasons
KEY_EVENTS: Final = "events"  # stream, bounded: control events
KEY_OVERRIDE: Final = "override"  # hash: rate, until, by, why, since
KEY_BANDS: Final = "bands"  # hash: rate_max, rate_min, lag_degraded, lag_critical, by, why, since
KEY_ACCOUNTS: Final = (
    "accounts"  # hash: account -> what an operator set for it, as JSON; `restored` marks it as complete
)
# hash: tokens, at, rate, ran_dry (calls that got too little, and did not find it full); where levels are in use also
# deferred, deferred_by, allowance_info and allowance_warn (pipeline/flow/bucket.py).
KEY_BUCKET: Final = "bucket"
KEY_COUNTERS: Final = "counters"  # hash: counts of processes of all kinds, for the metrics of the whole system
KEY_COUNTERS_SENDER: Final = "counters:sender"  # string for each sender, expires: number of its last addition
KEY_FACTS: Final = "facts"  # string with time to live: results of occasional queries to PostgreSQL, as JSON
KEY_PROCESSES: Final = "processes"  # sorted set: ingest process -> time of its last lease call
KEY_LOWEST_OFFSETS: Final = "floor"  # hash for each log_id: life, fence, incarnation, complete, partition -> offset
KEY_OFFERS: Final = "offers"  # hash, expires: ingest process -> time and what was offered to it, as JSON
KEY_KEYS: Final = "keys"  # hash: id of an API key -> the key as JSON, `-` and id of a revoked one; `version`
KEY_THROTTLE: Final = "throttle"  # hash, expires: ingest process and slice -> time, what it refused by account, as JSON
KEY_TROUBLES: Final = "troubles"  # hash, expires: process -> its problems, as JSON
KEY_TROUBLES_AT: Final = "troubles:at"  # hash, expires: process -> time of its report, by the store's clock
KEY_LEASE: Final = "lease"  # string with time to live, one for each named lease
KEY_PROGRESS: Final = "progress"  # hash for each log_id, expires: partition -> offset, and since when it is unchanged
KEY_HISTORY: Final = "history"  # stream, bounded, expires: one entry a second with the data of the live page
KEY_HISTORY_TOTALS: Final = "history:totals"  # hash, expires: counts of all ingest processes since a flush

# Keys on the log server (EVENT_LOG_URL=redis://…), with the same prefix.
KEY_LOG_ID: Final = "log:id"  # string: `<uuid>.<number of partitions>` of this log
KEY_LOG_STREAM: Final = "log:stream"  # stream for each partition: `log:stream:0` …
KEY_LOG_COMMITTED: Final = "log:committed"  # hash: partition -> next offset to read, for lag
# hash: incarnation; for each partition its end (e0, e1, …), its lowest offset (f0, …), where it began in this
# incarnation (s0, …), and how many acknowledged records it lost then (l0, …); begun: of which incarnation; lost_at:
# when found
KEY_LOG_ENDS: Final = "log:ends"


class DropReason(StrEnum):
    """Why a worker dropped a message of its queue. Tasks are hints and ticks: the next one does the work."""

    MALFORMED = "malformed"  # not JSON, not a Celery message, or one with an ETA: another program wrote into the queue
    UNKNOWN_TASK = "unknown_task"  # this worker does not know the task: it is of another version or another application
    ARGUMENTS = "arguments"  # the task does not accept these arguments, or there is no such partition
    EXPIRED = "expired"  # the sender gave it an expiry by its own wall clock; Sluice's own messages have none
    REVOKED = "revoked"  # an operator revoked it
    UNSIGNED = "unsigned"  # messages are signed, and its signature is missing or not valid
    REPEATED = "repeated"  # messages are signed, and this remote command was seen before, or is old


# Leases
LEASE_REGULATE: Final = "regulate"  # a tick ran within this period
LEASE_TICK: Final = "regulate:tick"  # a tick is under way
LEASE_MEASURE: Final = "measure"  # what PostgreSQL holds was measured within this period
LEASE_PROBE: Final = "probe"  # held while the prober tries PostgreSQL: the breaker is half-open during that time
