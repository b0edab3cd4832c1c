"""A backlog on a running system: the worker stops, the rate falls with the lag, the worker returns.

The system is started by this command in a folder and on ports of its own, with the mission's bands and a raised
maximum rate, so that the lag grows in seconds instead of minutes.
"""

import argparse
import http.client
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from checks.loadgen.steady import SteadyLoad
from stack.config import StackConfig, environ_of_its_own
from stack.servers import LOOPBACK
from stack.system import System

RATE_MAX = 5000
OFFERED = 6000  # events/s
BATCH_EVENTS = 100
SCENARIO_SECONDS_MAX = 180


class Scenario:
    """Prints a row whenever something changed."""

    def __init__(self, port: int, offer: SteadyLoad) -> None:
        self._port = port
        self._offer = offer
        self._started = time.monotonic()
        self._last: tuple[Any, ...] = ()
        print(f"{'s':>5}  {'':28}{'health':10}{'lag':>8}{'rate':>7}{'accepted':>10}{'refused':>9}")

    def look(self, happened: str = "") -> dict[str, Any]:
        """Return the health document. Print a row if status or rate changed, or something happened."""
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=10)
        connection.request("GET", "/api/logs/health")
        health: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        now = (health["status"], health["rateLimit"])
        if happened or now != self._last:
            self._last = now
            lag = "?" if health["consumerLag"] is None else f"{health['consumerLag']:,}"
            print(
                f"{time.monotonic() - self._started:>5.0f}  {happened:28}{health['status']:10}{lag:>8}"
                f"{health['rateLimit'] or 0:>7.0f}{self._offer.accepted:>10,}{self._offer.refused:>9,}",
                flush=True,
            )
        return health

    def until(self, wanted: Any) -> None:
        """Look until a condition of the health document holds."""
        deadline = time.monotonic() + SCENARIO_SECONDS_MAX
        while not wanted(self.look()):
            if time.monotonic() > deadline:
                raise SystemExit("the scenario makes no progress")
            time.sleep(0.2)


def run(log: str) -> None:
    """Run the scenario."""
    with (
        tempfile.TemporaryDirectory() as folder,
        # The scenario tests the lag. It causes many refused events on purpose.
        environ_of_its_own(RATE_MAX=str(RATE_MAX), REFUSED_RATIO_MAX="1", SLUICE_HOME=folder) as environ,
    ):
        system = System(StackConfig.from_environ(log))
        system.home = Path(folder)
        system.start(threading.Event())
        try:
            port = int(environ["INGEST_PORT"])
            offer = SteadyLoad(port, OFFERED, BATCH_EVENTS, SCENARIO_SECONDS_MAX)
            scenario = Scenario(port, offer)
            offer.start()
            supervisor = system.supervisor()
            supervisor.stopProcess("batches", True)
            scenario.look("worker stopped")
            scenario.until(lambda health: (health["consumerLag"] or 0) > 50_000)
            scenario.look("lag above 50,000")
            supervisor.startProcess("batches", False)
            scenario.look("worker returns")
            scenario.until(lambda health: health["status"] == "healthy" and health["rateLimit"] == RATE_MAX)
            offer.stop()
            scenario.look("healthy again")
        finally:
            system.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m checks.bench.backlog", description=__doc__)
    parser.add_argument("--log", choices=("redis", "kafka"), default="redis")
    run(parser.parse_args().log)
