"""A running system with servers of its own, on which end-to-end tests work."""

from dataclasses import dataclass
from pathlib import Path

from checks.testbed.processes import System
from pipeline.settings import Settings
from stack.servers import Server
from support.traffic import Traffic, assert_kept_promises


@dataclass
class Site:
    """A running system with servers of its own."""

    system: System
    log: Server
    postgres: Server
    control_redis: Server
    folder: Path

    @property
    def settings(self) -> Settings:
        return self.system.settings

    def traffic(self, *, events_per_second: float = 500, events_max: int = 100_000) -> Traffic:
        return Traffic(self.system.url, events_per_second=events_per_second, events_max=events_max)

    def check(self, traffic: Traffic) -> None:
        """The promises, and that the system is whole again."""
        assert_kept_promises(traffic, self.postgres.url)
        self.system.wait(lambda: self.system.health()["status"] == "healthy", "healthy again")
