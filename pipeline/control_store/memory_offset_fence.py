"""The mirror of the stored offsets in memory."""

import uuid

from pipeline.control_store.memory_server import LowestOffsets, MemoryAdapter
from pipeline.errors import FencedError
from pipeline.ports.control import Mirror


class MemoryOffsetFence(MemoryAdapter):
    """The mirror of the stored offsets; see OffsetFence."""

    def mirror(self, log_id: str) -> Mirror:
        with self._server.changed:
            held = self._of(log_id)
            return Mirror(held.life, dict(held.offsets), held.is_complete)

    def fence(self, log_id: str, incarnation: str) -> Mirror:
        with self._server.changed:
            self._of(log_id).incarnation = incarnation
            return self.mirror(log_id)

    def seed(self, log_id: str, life: str, lowest_offsets: dict[int, int]) -> None:
        with self._server.changed:
            mirror = self._of(log_id)
            if mirror.life != life:
                return
            for partition, offset in lowest_offsets.items():
                mirror.offsets[partition] = max(offset, mirror.offsets.get(partition, offset))
            mirror.is_complete = True

    def raise_lowest_offset(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
        with self._server.changed:
            held = self._of(log_id)
            if held.incarnation != incarnation:
                raise FencedError
            held.offsets[partition] = max(offset, held.offsets.get(partition, offset))

    def lower_lowest_offset(self, log_id: str, partition: int, offset: int) -> None:
        with self._server.changed:
            offsets = self._of(log_id).offsets
            if offsets.get(partition, offset) > offset:
                offsets[partition] = offset

    def _of(self, log_id: str) -> LowestOffsets:
        """A log's lowest offsets, without the fence and completeness of an earlier life of the server."""
        process = self._server.process
        held = self._server.content().lowest_offsets.setdefault(log_id, LowestOffsets(""))
        if not held.life.startswith(process):
            held.life = f"{process}:{uuid.uuid4().hex}"
            held.incarnation, held.is_complete = None, False
        return held
