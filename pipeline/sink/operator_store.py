"""The operator store in PostgreSQL."""

import json
from collections.abc import Sequence
from typing import Any

from pipeline.keys import ApiKey, StoredKeys
from pipeline.names import PauseReason, known_word
from pipeline.ports.control import Bands, OperatorLimit, OperatorPause, Override
from pipeline.ports.operator_store import DatabaseFacts, OperatorState
from pipeline.sink.queries import query
from pipeline.sink.session import Session


class PostgresOperatorStore:
    """Operators' settings over a connection that other stores may share."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def load(self) -> OperatorState:
        [(pauses, override, bands, accounts, keys_version)] = self._session.rows(query("load_operator_state"))
        return OperatorState(
            _pauses(pauses),
            None if override is None else Override(*_floats(override)),
            None if bands is None else Bands(*_floats(bands[:2]), *bands[2:]),
            [OperatorLimit(*_floats(one)) for one in accounts],
            str(keys_version),
        )

    def save_pause(self, pause: OperatorPause, evidence: dict[str, Any] | None = None) -> None:
        self._session.count(
            query("save_pause" if pause.partition is None else "save_partition_pause"),
            {
                "reason": pause.name,
                "partition": pause.partition,
                "paused_by": pause.actor.replace("\0", ""),
                "why": pause.why.replace("\0", ""),
                "since": pause.since,
                "evidence": None if evidence is None else json.dumps(evidence).replace("\\u0000", "\\ufffd"),
            },
        )

    def delete_pause(self, name: str, partition: int | None = None) -> bool:
        statement = query("delete_pause" if partition is None else "delete_partition_pause")
        return self._session.count(statement, {"reason": name, "partition": partition}) > 0

    def pause_evidence(self, reason: PauseReason, partition: int) -> dict[str, Any] | None:
        place = {"reason": reason.value, "partition": partition}
        for (evidence,) in self._session.rows(query("pause_evidence"), place):
            found: dict[str, Any] | None = evidence
            return found
        return None

    def set_override(self, override: Override | None) -> None:
        if override is None:
            self._session.count(query("delete_override"))
            return
        self._session.count(
            query("save_override"),
            {
                "rate": override.rate,
                "until": override.until,
                "set_by": override.actor.replace("\0", ""),
                "why": override.why.replace("\0", ""),
                "since": override.since,
            },
        )

    def set_bands(self, bands: Bands | None) -> None:
        if bands is None:
            self._session.count(query("delete_bands"))
            return
        self._session.count(
            query("save_bands"),
            {
                "rate_max": bands.rate_max,
                "rate_min": bands.rate_min,
                "lag_degraded": bands.lag_degraded,
                "lag_critical": bands.lag_critical,
                "set_by": bands.actor.replace("\0", ""),
                "why": bands.why.replace("\0", ""),
                "since": bands.since,
            },
        )

    def save_account_limit(self, asked: OperatorLimit) -> None:
        self._session.count(
            query("save_account_limit"),
            {
                "account": asked.account,
                "rate": asked.rate,
                "weight": asked.weight,
                "set_by": asked.actor.replace("\0", ""),
                "why": asked.why.replace("\0", ""),
                "since": asked.since,
            },
        )

    def delete_account_limit(self, account: str) -> None:
        self._session.count(query("delete_account_limit"), {"account": account})

    def load_keys(self) -> StoredKeys:
        # The version first: if a key changes in between, the version is older than the keys, and is read again.
        version = self.keys_version()
        found = self._session.rows(query("load_keys"))
        keys = [
            ApiKey(key_id, name, digest, tuple(protocols), expires, actor, why, since, level)
            for key_id, name, digest, protocols, expires, actor, why, since, level in found
        ]
        return StoredKeys(version, tuple(keys))

    def keys_version(self) -> str:
        [(version,)] = self._session.rows(query("keys_version"))
        return str(version)

    def save_key(self, key: ApiKey) -> None:
        self._session.count(
            query("save_key"),
            {
                "id": key.id,
                "name": key.name,
                "sha256": key.digest,
                "protocols": list(key.protocols),
                "expires": key.expires,
                "made_by": key.actor.replace("\0", ""),
                "why": key.why.replace("\0", ""),
                "since": key.since,
                "level": key.level,
            },
        )

    def delete_keys(self, ids: Sequence[str]) -> int:
        [(count,)] = self._session.rows(query("delete_keys"), {"ids": list(ids)})
        return int(count)

    def database_facts(self) -> DatabaseFacts:
        return DatabaseFacts(*self._session.rows(query("database_facts"))[0])

    def close(self) -> None:
        self._session.close()


def _pauses(found: Sequence[Any]) -> list[OperatorPause]:
    reasons = {word: known_word(PauseReason, word) for word, *_ in found}
    return [
        OperatorPause(reasons[word], actor, why, since, partition, word if reasons[word] is PauseReason.UNKNOWN else "")
        for word, actor, why, since, partition in found
    ]


def _floats(values: Sequence[Any]) -> list[Any]:
    """The values; JSON has no difference between 5 and 5.0."""
    return [float(value) if isinstance(value, int) else value for value in values]
