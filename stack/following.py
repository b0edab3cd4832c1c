"""Follows log files in a terminal, which gets no control characters from them.

Sluice's own lines have none, but other programs write what clients sent: PostgreSQL shows the key of each repeat.
"""

import codecs
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Final

from pipeline.text import on_its_lines

_LINES_FIRST: Final = 20  # of each file
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def follow(paths: Iterable[Path]) -> int:
    """Print the ends of the files, and what is added to them, until a signal. Returns the exit status.

    Files that are replaced or cut are followed too. If the reader closes its end, that is no error.
    """
    command = ["tail", "-n", str(_LINES_FIRST), "-F", *map(str, paths)]  # finds files that were replaced or cut
    received: list[int] = []
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:

        def end(number: int, _frame: FrameType | None) -> None:
            received.append(number)
            tail.terminate()

        for number in _SIGNALS:
            signal.signal(number, end)
        assert tail.stdout is not None  # noqa: S101 - it is a pipe
        try:
            while chunk := os.read(tail.stdout.fileno(), 1 << 16):
                sys.stdout.buffer.write(on_its_lines(decoder.decode(chunk)).encode())
                sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports it again at its end
            tail.terminate()
            tail.wait()
            return 0
    if received:  # end by it, as tail would
        signal.signal(received[0], signal.SIG_DFL)
        os.kill(os.getpid(), received[0])
    return tail.returncode
