"""The queue between a program and the sender: bounded by bytes, and it gives up the lowest severity first."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sluice_client.events import LEVELS, SEVERITIES

LEVEL_NONE: Final = -1  # below all levels
ITEM_BYTES: Final = 200  # of memory that an event needs beside its line, so that many small events are bounded too


def count_within(lines: Iterable[bytes], events_max: int, bytes_max: int) -> int:
    """How many of these lines fit into one body, at least one if there is one."""
    count, size = 0, -1
    for line in lines:
        size += len(line) + 1
        if count and (count == events_max or size > bytes_max):
            break
        count += 1
    return count


@dataclass(slots=True, eq=False)
class Item:
    """An event in the queue."""

    line: bytes
    rank: int  # of its severity
    number: int  # events are sent in this order; 0: it was in the spill folder

    @property
    def cost(self) -> int:
        """The bytes of memory that it counts for."""
        return len(self.line) + ITEM_BYTES

    @property
    def severity(self) -> str:
        """Its severity."""
        return SEVERITIES[self.rank]

    @property
    def level(self) -> int:
        """Its level in the server's admission."""
        return LEVELS[self.rank]

    @property
    def is_from_disk(self) -> bool:
        """Whether it is in a segment of the spill folder, and so does not count for the bound of the queue."""
        return self.number == 0


class Buffer:
    """Events that wait, and events that were taken to be sent and are not settled yet. Both count for the bound.

    Not safe for threads: the core's lock protects it.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0  # waiting or taken
        self.bytes_waiting = 0
        self._bytes_by_level = [0] * (max(LEVELS) + 1)  # that wait
        self._by_rank: tuple[deque[Item], ...] = tuple(deque() for _ in SEVERITIES)

    def __len__(self) -> int:
        """The number of events that wait."""
        return sum(map(len, self._by_rank))

    def has_room(self, cost: int) -> bool:
        """Whether an event of this cost fits without dropping another."""
        return self.bytes_held + cost <= self.bytes_max

    def bytes_above(self, level: int) -> int:
        """The bytes that wait in events of higher levels."""
        return sum(self._bytes_by_level[level + 1 :])

    def add(self, item: Item) -> list[Item]:
        """Add an event; returns the events that had to go for it, or the event itself.

        The lowest severity goes first, and of one severity the oldest event. An event does not displace a higher one.
        """
        dropped: list[Item] = []
        while not self.has_room(item.cost):
            queue = next((one for one in self._by_rank[: item.rank + 1] if one), None)
            if queue is None:
                return [*dropped, item]
            dropped.append(self._forget(queue))
        self._by_rank[item.rank].append(item)
        self.bytes_held += item.cost
        self._wait(item, 1)
        return dropped

    def take(
        self, events_max: int, bytes_max: int, *, above: int = LEVEL_NONE, is_one_level: bool = False
    ) -> list[Item]:
        """The next events in the order of their numbers, at least one if there is one. They still count as held.

        Only events of levels `above` are taken. With `is_one_level`, all have the level of the oldest of these.
        """
        queues = [queue for level, queue in zip(LEVELS, self._by_rank, strict=True) if level > above]
        if is_one_level and (first := _oldest(queues)) is not None:
            queues = [queue for queue in queues if queue and queue[0].level == first[0].level]
        found: list[Item] = []
        size = 0
        while len(found) < events_max and (queue := _oldest(queues)) is not None:
            size += len(queue[0].line) + 1
            if found and size > bytes_max:
                break
            found.append(self._pop(queue))
        return found

    def take_lowest(self, bytes_max: int) -> list[Item]:
        """Events of the lowest severities, the oldest first, at least one if there is one. They still count as held."""
        found: list[Item] = []
        size = 0
        for queue in self._by_rank:
            while queue:
                size += len(queue[0].line) + 1
                if found and size > bytes_max:
                    return found
                found.append(self._pop(queue))
        return found

    def settle(self, items: Iterable[Item]) -> None:
        """Forget events that were taken."""
        for item in items:
            self.bytes_held -= item.cost

    def put_back(self, items: Iterable[Item]) -> None:
        """Let events wait again that were taken, before those that came after them."""
        for item in sorted(items, key=lambda one: one.number, reverse=True):
            self._by_rank[item.rank].appendleft(item)
            self._wait(item, 1)

    def first_number(self) -> int | None:
        """The number of the oldest event that waits; None if none does."""
        queue = _oldest(self._by_rank)
        return None if queue is None else queue[0].number

    def _wait(self, item: Item, sign: int) -> None:
        """Count an event that begins to wait (1), or that does so no more (-1)."""
        self.bytes_waiting += sign * item.cost
        self._bytes_by_level[item.level] += sign * item.cost

    def _pop(self, queue: deque[Item]) -> Item:
        item = queue.popleft()
        self._wait(item, -1)
        return item

    def _forget(self, queue: deque[Item]) -> Item:
        item = self._pop(queue)
        self.bytes_held -= item.cost
        return item


def _oldest(queues: Iterable[deque[Item]]) -> deque[Item] | None:
    """The queue with the oldest event."""
    return min((queue for queue in queues if queue), key=lambda queue: queue[0].number, default=None)
