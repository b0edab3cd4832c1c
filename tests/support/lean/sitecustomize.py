"""For the programs that tests start: what they import and never use is not there.

Celery imports Flower for each of its commands. redis-py imports OpenTelemetry's SDK where that is installed, which is
for a test only. Both together are a sixth of the start of a worker. What run.sh and the image start see all of it.
"""

import sys
from typing import Any


class _Hiding:
    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "opentelemetry.sdk" or (name == "flower.command" and "flower" not in sys.argv):
            raise ModuleNotFoundError(f"{name} is hidden from this program", name=name)


sys.meta_path.insert(0, _Hiding)
