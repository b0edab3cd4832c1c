"""The mirror of the API keys on the control store. PostgreSQL has the keys; ingest reads the mirror."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.keys import ApiKey


@dataclass(frozen=True, slots=True)
class MirroredKeys:
    """The content of the mirror.

    The version is that of PostgreSQL's keys, a dot, and the number of keys that were revoked in the mirror since then.
    """

    version: str
    keys: tuple[ApiKey, ...]
    revoked: tuple[str, ...] = ()  # ids of keys that PostgreSQL may still have


def mirrored_version(stored: str) -> str:
    """The version of a mirror that is equal to PostgreSQL's keys of this version."""
    return f"{stored}.0"


class KeyMirror(Protocol):
    """Every method raises StoreUnavailableError. The control state has the version (`ControlState.keys_version`)."""

    def load(self) -> MirroredKeys | None:
        """The content; None if it is unknown: the store was flushed, and nobody has copied the keys yet."""

    def replace(self, keys: Sequence[ApiKey], stored_version: str, *, instead_of: str | None) -> bool:
        """Replace the content, if its version is still `instead_of` (None: unknown); returns whether it was."""

    def revoke(self, ids: Sequence[str]) -> bool:
        """Remove keys at once, and remember their ids until the next `replace`; False: it is unknown, so nothing is."""
