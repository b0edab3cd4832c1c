"""Leases, and the progress of the drains, on Redis."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.names import KEY_LEASE, KEY_PROGRESS
from pipeline.settings import Settings

LEASE_LIBRARY: Final = "lease_lib"


class RedisLeases:
    """Claims, each with its start time and duration; see Leases."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)

    def take(self, name: str, *, seconds: float) -> str | None:
        taken = self.take_in_order([(name, seconds)])
        return taken[0] if taken else None

    def take_in_order(self, claims: Sequence[tuple[str, float]]) -> list[str]:
        token = uuid.uuid4().hex
        keys = [self._connection.key(KEY_LEASE, name) for name, _ in claims]
        arguments = [token, *(repr(float(seconds)) for _, seconds in claims)]
        return [token] * int(self._connection.run(load_script("take_leases", LEASE_LIBRARY), keys, arguments))

    def give_back(self, name: str, token: str) -> None:
        self._connection.run(load_script("give_back_lease"), [self._connection.key(KEY_LEASE, name)], [token])


class RedisProgress:
    """How long each partition has had the same offset, in one hash that expires; see Progress."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)

    def note(self, log_id: str, offsets: Mapping[int, int], *, forget_seconds: float) -> dict[int, float]:
        arguments = [str(round(forget_seconds * 1000))]
        arguments += [str(number) for item in offsets.items() for number in item]
        keys = [self._connection.key(KEY_PROGRESS, log_id)]
        stood = self._connection.run(load_script("progress"), keys, arguments)
        return {partition: float(seconds) for partition, seconds in zip(offsets, stood, strict=True)}
