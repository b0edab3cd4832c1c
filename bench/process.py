"""CPU time of processes."""

import time

import psutil


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
        if one is process:  # what its children used that have ended since
            total += times.children_user + times.children_system
    return total


def own_cpu_seconds() -> float:
    """User and system time of this process so far, all threads, seconds."""
    return time.process_time()
