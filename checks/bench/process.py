"""CPU time of processes, and the work done with it."""

import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Cost:
    """Units of work (requests or events), with the CPU time of the measured process and the wall time for them."""

    units: int
    cpu_seconds: float
    wall_seconds: float
    log_cpu_seconds: float = 0.0  # the log server's own

    @property
    def per_cpu_second(self) -> float:
        """Units a CPU-second."""
        return self.units / self.cpu_seconds


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children so far, seconds."""
    process = psutil.Process(pid)
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        if one is process:  # of its children that have ended
            total += times.children_user + times.children_system
    return total


def own_cpu_seconds() -> float:
    """User and system time of this process so far, all threads, seconds."""
    return time.process_time()
