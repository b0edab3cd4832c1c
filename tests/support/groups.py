"""Groups of tests: which run in one process, in which order, and how long the servers of a group run."""

import re
from collections.abc import Callable
from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from stack.servers import Server

ON_KAFKA: Final = "kafka"  # the group of the tests that share a Kafka
# The longest groups come first, so that they do not begin when the others have ended.
_LONGEST: Final = ("e2e-redis", "e2e-kafka", ON_KAFKA, "tests/integration/test_stack.py")


def group_of(nodeid: str) -> str:
    """The group of a test: the tests of its file, the end-to-end tests of a log, or the tests on the shared Kafka."""
    end_to_end = re.match(r"tests/e2e/(?!test_monitoring).*\[(redis|kafka)", nodeid)
    if end_to_end:
        return f"e2e-{end_to_end[1]}"
    if re.match(r"tests/(contract|integration)/.*kafka", nodeid):
        return ON_KAFKA
    return nodeid.partition("::")[0]


def put_longest_first(items: list[pytest.Item]) -> None:
    """Sort the tests so that those of a long group follow each other, at the start."""
    rank = {group: place for place, group in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(group_of(item.nodeid), len(rank)))


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # xdist.scheduler says nothing of its types
    """Each group runs in one process, since its tests share servers.

    pytest-xdist's own groups (`xdist_group`) have no effect with pytest 9.2, which no longer looks at the name that
    they change.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return ByGroup(config, log)


class SharedServer:
    """A server that is started when a test needs it, and runs until it is stopped."""

    def __init__(self, make: Callable[[], Server]) -> None:
        self._make = make
        self._server: Server | None = None

    def running(self) -> Server:
        if self._server is None:
            server = self._make()
            try:
                self._server = server.start()
            except BaseException:  # it may run, and not be what it should be
                server.stop()
                raise
        return self._server

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


SHARED_KAFKA: Final = pytest.StashKey[SharedServer]()


@pytest.hookimpl(trylast=True)  # when the test's fixtures have ended
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the shared Kafka after the last test of its group: an idle broker uses the processor too."""
    if nextitem is None or group_of(nextitem.nodeid) != ON_KAFKA:
        shared = item.config.stash.get(SHARED_KAFKA, None)
        if shared is not None:
            shared.stop()
