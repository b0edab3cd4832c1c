"""The interpreter's settings while a drain runs: garbage collection, and how threads take turns."""

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Final

# Net new containers before the garbage collector runs; Python's default is 700. Each batch creates thousands of lists
# for its records. They live as long as the batch and never form a cycle; scanning them took an eighth of the CPU.
_GARBAGE_THRESHOLD: Final = 50_000
# How long a thread may keep the interpreter while another one waits for it. The thread that feeds PostgreSQL needs it
# briefly for each piece. With Python's default of 5 ms, PostgreSQL waits for data (docs/adr/drain-speed.md).
_SWITCH_SECONDS: Final = 0.0005


@contextlib.contextmanager
def tuned_interpreter() -> Iterator[None]:
    """Collect garbage less often and switch threads more often, in this process, while the body runs."""
    youngest, *older = gc.get_threshold()
    switch_seconds = sys.getswitchinterval()
    gc.set_threshold(max(youngest, _GARBAGE_THRESHOLD), *older)
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        gc.set_threshold(youngest, *older)
        sys.setswitchinterval(switch_seconds)
