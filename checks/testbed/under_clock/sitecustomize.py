"""For Python under libfaketime 0.9.10, which fails a sleep until a monotonic time that has just passed (EINVAL)."""

import select
import time
from typing import Any


def _sleep(seconds: Any, /) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = _sleep
