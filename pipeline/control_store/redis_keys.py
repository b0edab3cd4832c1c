"""The mirror of the API keys on Redis."""

from collections.abc import Sequence
from typing import Final

import msgspec

from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.keys import ApiKey
from pipeline.names import KEY_KEYS
from pipeline.ports.keys import MirroredKeys, mirrored_version
from pipeline.settings import Settings

_decoder: Final = msgspec.json.Decoder(ApiKey)
_VERSION: Final = "version"
_REVOKED: Final = "-"  # before the id of a revoked key


class RedisKeyMirror:
    """One hash: id -> key as JSON; see KeyMirror."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._keys = [self._connection.key(KEY_KEYS)]

    def load(self) -> MirroredKeys | None:
        found: dict[str, str] = self._connection.call("HGETALL", *self._keys)
        version = found.pop(_VERSION, None)
        if version is None:
            return None
        revoked = tuple(sorted(field.removeprefix(_REVOKED) for field in found if field.startswith(_REVOKED)))
        keys = []
        for field, text in sorted(found.items()):
            if not field.startswith(_REVOKED):
                try:
                    keys.append(_decoder.decode(text))
                except msgspec.MsgspecError:
                    continue  # a key that this version can't read is not valid here
        return MirroredKeys(version, tuple(keys), revoked)

    def replace(self, keys: Sequence[ApiKey], stored_version: str, *, instead_of: str | None) -> bool:
        arguments = [instead_of or "", mirrored_version(stored_version)]
        for key in keys:
            arguments += [key.id, msgspec.json.encode(key).decode()]
        return bool(self._connection.run(load_script("replace_keys"), self._keys, arguments))

    def revoke(self, ids: Sequence[str]) -> bool:
        return bool(self._connection.run(load_script("revoke_keys"), self._keys, list(ids)))
