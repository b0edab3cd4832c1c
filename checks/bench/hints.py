"""`python -m checks.bench.hints COUNT`: CPU seconds to send COUNT hints, and to take them from the queue.

The settings are those of the environment. Prints the two numbers. It is a separate process because signing is switched
on for a whole process.
"""

import sys
import time
from typing import Any

from pipeline.names import Queue
from tasks.app import app
from tasks.hints import send_hint


def main() -> int:
    """Send and take; returns the exit status."""
    count = int(sys.argv[1])
    queue = app.amqp.queues[Queue.BATCHES.value]
    send_hint(app, 0, hint=None)  # connects
    with app.connection_for_read() as connection:
        bound: Any = queue(connection.default_channel)
        _take(bound)
        began = time.process_time()
        for _ in range(count):
            send_hint(app, 0, hint=None)
        sent = time.process_time() - began
        began = time.process_time()
        for _ in range(count):
            _take(bound)
        taken = time.process_time() - began
    print(sent, taken)
    return 0


def _take(queue: Any) -> None:
    message = queue.get(no_ack=True, accept=app.conf.accept_content)
    if message is None:
        raise RuntimeError("a hint is missing")
    message.decode()


if __name__ == "__main__":
    sys.exit(main())
