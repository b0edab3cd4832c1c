"""The age of something that another clock dated, measured by the reader's own monotonic clock."""

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class Age:
    """The age of the newest version of something that its reader polls.

        age = age at the first look + time since the first look
        age at the first look = min(time since the previous look, max(0, said))

    `said` is the age by the clock that dated the version. That clock may be stepped at any time. So `said` counts at
    the first look only, and never for more than the time since the reader last saw another version. If there was no
    previous look, `said` is the only information.
    """

    _version: Hashable = None
    _age: float = 0.0  # at the first look
    _seen_at: float = 0.0  # time of the first look
    _looked_at: float | None = None  # time of the last look

    def of(self, version: Hashable, said: float, *, now: float) -> float:
        """Look at a version; returns its age in seconds. `now` is the reader's monotonic clock."""
        if self._looked_at is None or version != self._version:
            age = max(0.0, said)
            self._age = age if self._looked_at is None else min(age, now - self._looked_at)
            self._version, self._seen_at = version, now
        self._looked_at = now
        return self.now(now)

    def begin(self, version: Hashable, *, now: float) -> None:
        """Record a version that the reader itself has created just now."""
        self._version, self._age, self._seen_at, self._looked_at = version, 0.0, now, now

    def now(self, now: float) -> float:
        """Age of the version that was last looked at, without a new look."""
        return self._age + now - self._seen_at
