"""The mirror of the API keys in memory."""

from collections.abc import Sequence

from pipeline.control_store.memory_server import MemoryAdapter
from pipeline.keys import ApiKey
from pipeline.ports.keys import MirroredKeys, mirrored_version


class MemoryKeyMirror(MemoryAdapter):
    """The mirror of the API keys; see KeyMirror."""

    def load(self) -> MirroredKeys | None:
        with self._server.changed:
            return self._server.content().keys

    def replace(self, keys: Sequence[ApiKey], stored_version: str, *, instead_of: str | None) -> bool:
        with self._server.changed:
            content = self._server.content()
            if (None if content.keys is None else content.keys.version) != instead_of:
                return False
            ordered = tuple(sorted(keys, key=lambda key: key.id))
            content.keys = MirroredKeys(mirrored_version(stored_version), ordered)
            return True

    def revoke(self, ids: Sequence[str]) -> bool:
        with self._server.changed:
            content = self._server.content()
            held = content.keys
            if held is None:
                return False
            stored, _, count = held.version.rpartition(".")
            left = tuple(key for key in held.keys if key.id not in ids)
            revoked = tuple(sorted({*held.revoked, *ids}))
            content.keys = MirroredKeys(f"{stored}.{int(count) + 1}", left, revoked)
            return True
