"""API keys of writers: how they are made, and what is stored of them. Only the SHA-256 of a key is stored.

A key has 192 random bits. So its hash can't be reversed by trying, and needs neither a salt nor a slow function.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final

from pipeline.account import account_of_key

PREFIX: Final = "slc_"  # so that scanners for leaked secrets, and people, recognise a key
_ID_BYTES: Final = 4
_SECRET_BYTES: Final = 24
KEY_ID: Final = re.compile(r"[0-9a-f]{8}")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. Several keys may have the same name: then they are the same account, so that a key can be replaced."""

    id: str  # public: it names the key in lists and commands
    name: str
    digest: str  # the SHA-256 of the key, in hexadecimal
    protocols: tuple[str, ...]  # names of the protocols that it is for; empty: all
    expires: float | None  # seconds since the epoch; None: never
    actor: str
    why: str
    since: float
    level: str | None = None  # the highest level that its requests may have; None: any

    @property
    def account(self) -> str:
        """The account of its requests."""
        return account_of_key(self.name)


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """All keys, and a version that changes with each of them."""

    version: str
    keys: tuple[ApiKey, ...]


def make_key() -> tuple[str, str]:
    """A new key, and its id, which is part of it."""
    key_id = secrets.token_hex(_ID_BYTES)
    return f"{PREFIX}{key_id}_{secrets.token_hex(_SECRET_BYTES)}", key_id


def digest_of(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
