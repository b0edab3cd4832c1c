"""The mirror of the stored offsets on Redis."""

from pipeline.control_store.connection import ControlConnection, load_script
from pipeline.errors import FencedError
from pipeline.names import KEY_LOWEST_OFFSETS
from pipeline.ports.control import Mirror
from pipeline.settings import Settings

_LIBRARY = "lowest_offsets_lib"


class RedisOffsetFence:
    """One hash for each log; see OffsetFence.

    Its weakness: a server process whose memory is restored together with the process (a snapshot of a running host)
    does not notice it. For that reason PostgreSQL is read as well.
    """

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)

    def mirror(self, log_id: str) -> Mirror:
        return self._mirror(log_id, "")

    def fence(self, log_id: str, incarnation: str) -> Mirror:
        return self._mirror(log_id, incarnation)

    def seed(self, log_id: str, life: str, lowest_offsets: dict[int, int]) -> None:
        pairs = [str(number) for item in lowest_offsets.items() for number in item]
        self._connection.run(load_script("seed_lowest_offsets", _LIBRARY), self._keys(log_id), [life, *pairs])

    def raise_lowest_offset(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
        raised = self._connection.run(
            load_script("raise_lowest_offset", _LIBRARY), self._keys(log_id), [incarnation, str(partition), str(offset)]
        )
        if not raised:
            raise FencedError

    def lower_lowest_offset(self, log_id: str, partition: int, offset: int) -> None:
        self._connection.run(load_script("lower_lowest_offset"), self._keys(log_id), [str(partition), str(offset)])

    def _mirror(self, log_id: str, incarnation: str) -> Mirror:
        answer = self._connection.run(load_script("mirror", _LIBRARY), self._keys(log_id), [incarnation])
        fields = dict(zip(answer[::2], answer[1::2], strict=True))
        lowest_offsets = {int(field): int(value) for field, value in fields.items() if field.isdecimal()}
        return Mirror(fields["life"], lowest_offsets, "complete" in fields)

    def _keys(self, log_id: str) -> list[str]:
        return [self._connection.key(KEY_LOWEST_OFFSETS, log_id)]
