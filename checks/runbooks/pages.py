"""The scenarios of each page of docs/runbooks/, and the system that they run on."""

from collections.abc import Callable
from typing import Final

from checks.runbooks import parts_scenarios as parts
from checks.runbooks import scenarios as own
from checks.runbooks.act import Act
from checks.runbooks.systems import Kind

SCENARIOS: Final[dict[str, tuple[Callable[[Act], None], ...]]] = {
    "breaker-open": (own.breaker_open,),
    "database-refused": (parts.database_refused_session, parts.database_refused_table),
    "paused": (own.paused_operator, own.paused_poison, own.paused_log_gap),
    "controller-silent": (own.controller_silent,),
    "store-down": (own.store_down,),
    "pauses-unknown": (own.pauses_unknown,),
    "no-progress": (own.no_progress,),
    "behind": (own.behind,),
    "log-down": (own.log_down,),
    "log-full": (own.log_full,),
    "refusing": (own.refusing,),
    "dead-letters": (own.dead_letters,),
    "database-silent": (own.database_silent,),
    "process-missing": (own.process_missing,),
    "schema-refused": (own.schema_refused,),
    "retention": (own.retention,),
    "redis-memory-near-limit": (own.redis_memory_near_limit,),
    "database-connections-high": (own.database_connections_high,),
    "clocks-differ": (own.clocks_differ,),
    "began-late": (own.began_late,),
    "former-log": (own.former_log,),
    "lag-unknown": (own.lag_unknown,),
    "log-behind-stored": (own.log_behind_stored,),
    "log-tail-lost": (own.log_tail_lost,),
    "loop": (parts.loop,),
    "disk-near-full": (parts.disk_near_full,),
    "alerts-not-delivered": (parts.alerts_not_delivered,),
    "operator-password-wrong": (own.operator_password_wrong,),
    "forged-messages": (own.forged_messages,),
    "client-certificates-refused": (parts.client_certificates_refused,),
    "replicas-missing": (parts.replicas_missing,),
    "log-set-up": (parts.log_set_up,),
    "partition-away": (parts.partition_away,),
}
_KINDS: Final = {
    "operator-password-wrong": Kind.GUARDED,
    "forged-messages": Kind.GUARDED,
    "client-certificates-refused": Kind.CERTIFICATES,
    "replicas-missing": Kind.REPLICATED,
    "log-set-up": Kind.KAFKA,
    "partition-away": Kind.KAFKA,
}


def kind_of(name: str) -> Kind:
    """The system that a page needs."""
    return _KINDS.get(name, Kind.PLAIN)
