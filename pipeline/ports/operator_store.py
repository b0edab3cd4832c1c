"""The operator store: what operators set, and pauses that only they lift, where a flush of Redis can't reach it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.keys import ApiKey, StoredKeys
from pipeline.names import PauseReason
from pipeline.ports.control import Bands, OperatorLimit, OperatorPause, Override


@dataclass(frozen=True, slots=True)
class OperatorState:
    """The saved pauses, override, bands and limits of accounts, and the version of the API keys."""

    pauses: Sequence[OperatorPause] = ()  # including reasons that this version does not know
    override: Override | None = None  # None: none is saved, or its time is up
    bands: Bands | None = None  # None: those of the settings apply
    accounts: Sequence[OperatorLimit] = ()
    keys_version: str = ""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """Size and use of the database."""

    size_bytes: int
    connections: int  # of Sluice
    connections_max: int


class OperatorStore(Protocol):
    """Saves what operators set. Every method raises SinkUnavailableError. Not for use by several threads at once."""

    def load(self) -> OperatorState:
        """All that is saved, in one statement; of the API keys the version alone."""

    def save_pause(self, pause: OperatorPause, evidence: dict[str, Any] | None = None) -> None:
        """Save a pause; an already saved one stays as it is.

        `evidence` is the reason why a partition stopped, for people: see `pause_evidence`.
        """

    def delete_pause(self, name: str, partition: int | None = None) -> bool:
        """Delete a pause by its reason's name, of the whole system or of a partition; returns whether there was one."""

    def pause_evidence(self, reason: PauseReason, partition: int) -> dict[str, Any] | None:
        """The evidence that was saved with a partition's pause; None if there is none."""

    def set_override(self, override: Override | None) -> None:
        """Save an override, which replaces an earlier one; None deletes it."""

    def set_bands(self, bands: Bands | None) -> None:
        """Save bands, which replace earlier ones; None deletes them."""

    def save_account_limit(self, asked: OperatorLimit) -> None:
        """Save what an operator set for an account; it replaces an earlier entry."""

    def delete_account_limit(self, account: str) -> None:
        """Delete what an operator set for an account, if there is something."""

    def load_keys(self) -> StoredKeys:
        """All API keys. They are apart from `load`, since there may be many."""

    def keys_version(self) -> str:
        """The version of the API keys."""

    def save_key(self, key: ApiKey) -> None:
        """Save an API key; a saved one with the same id stays as it is."""

    def delete_keys(self, ids: Sequence[str]) -> int:
        """Delete API keys by their ids; returns how many there were."""

    def database_facts(self) -> DatabaseFacts:
        """Size and use of the database."""

    def close(self) -> None:
        """Close the connection; idempotent."""
