"""Leases, and how long partitions have the same offset, in memory."""

import uuid
from collections.abc import Mapping, Sequence

from pipeline.control_store.memory_server import MemoryAdapter


class MemoryLeases(MemoryAdapter):
    """Claims that expire; see Leases."""

    def take(self, name: str, *, seconds: float) -> str | None:
        taken = self.take_in_order([(name, seconds)])
        return taken[0] if taken else None

    def take_in_order(self, claims: Sequence[tuple[str, float]]) -> list[str]:
        tokens: list[str] = []
        with self._server.changed:
            leases, now = self._server.content().leases, self._server.clock.monotonic()
            for name, seconds in claims:
                if name in leases and leases[name][1] > now:
                    break
                tokens.append(uuid.uuid4().hex)
                leases[name] = (tokens[-1], now + seconds)
        return tokens

    def give_back(self, name: str, token: str) -> None:
        with self._server.changed:
            leases = self._server.content().leases
            if leases.get(name, ("", 0.0))[0] == token:
                del leases[name]


class MemoryProgress(MemoryAdapter):
    """How long each partition has had the same offset; see Progress."""

    def note(self, log_id: str, offsets: Mapping[int, int], *, forget_seconds: float) -> dict[int, float]:
        with self._server.changed:
            progress, now = self._server.content().progress, self._server.clock.monotonic()
            expires_at, noted = progress.get(log_id, (0.0, {}))
            if expires_at <= now:
                noted = {}
            standing = {}
            for partition, offset in offsets.items():
                noted_offset, since = noted.get(partition, (None, now))
                standing[partition] = (offset, since if noted_offset == offset and since <= now else now)
            progress[log_id] = (now + forget_seconds, standing)
            return {partition: now - since for partition, (_, since) in standing.items()}
