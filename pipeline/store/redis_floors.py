"""The mirror of the stored offsets on Redis."""

from pipeline.errors import FencedError
from pipeline.names import KEY_FLOOR
from pipeline.settings import Settings
from pipeline.store.connection import ControlConnection, load_script


class RedisFloors:
    """One hash for each log; see Floors.

    Its weakness: after a flush nobody knows which incarnation was fenced. The first drain that raises a floor then
    claims the place for its own, for no longer than a drain may run.
    """

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)
        self._claim_seconds = repr(settings.drain_hard_seconds_max)

    def fence(self, log_id: str, incarnation: str) -> dict[int, int] | None:
        answer = self._connection.run(load_script("fence"), self._keys(log_id), [incarnation])
        if answer is None:
            return None
        fields = zip(answer[::2], answer[1::2], strict=True)
        return {int(field): int(value) for field, value in fields if field.isdecimal()}

    def seed(self, log_id: str, floors: dict[int, int]) -> None:
        pairs = [str(number) for item in floors.items() for number in item]
        self._connection.run(load_script("seed_floors"), self._keys(log_id), pairs)

    def raise_floor(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
        raised = self._connection.run(
            load_script("raise_floor"),
            self._keys(log_id),
            [incarnation, str(partition), str(offset), self._claim_seconds],
        )
        if not raised:
            raise FencedError

    def _keys(self, log_id: str) -> list[str]:
        return [self._connection.key(KEY_FLOOR, log_id)]
