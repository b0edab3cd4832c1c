"""Watches processes during an attack: none may end, and none may grow."""

import statistics
import threading
import time
from collections.abc import Mapping

import psutil

MIB = 1 << 20
SAMPLE_SECONDS = 0.5
WARM_UP_SHARE = 0.25  # of the time; after it, a process has the memory it needs
GROWTH_SECONDS = 600.0  # the time for which growth is reported
GROWTH_BYTES_MAX = 8 * MIB  # in that time; the allocator's noise is well below it
SHORT_SECONDS = 300.0  # a shorter trend shows nothing: the total growth is limited instead
SHORT_GROWTH_BYTES_MAX = 32 * MIB


class Watch:
    """Samples the resident memory of processes from its start to its end; the names are for people."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes: dict[str, psutil.Process] = {}
        self._samples: dict[str, list[tuple[float, int]]] = {name: [] for name in pids}
        self._ended: set[str] = set()
        for name, pid in pids.items():
            try:
                self._processes[name] = psutil.Process(pid)
            except psutil.NoSuchProcess:
                self._ended.add(name)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        now = time.monotonic()
        for name, process in self._processes.items():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    self._ended.add(name)
                else:
                    self._samples[name].append((now, process.memory_info().rss))
            except psutil.NoSuchProcess:
                self._ended.add(name)

    def growth(self, name: str) -> tuple[float, float]:
        """(bytes, seconds) of growth from the median of the first samples after the warm-up to that of the last; for a
        long time, the trend's bytes in ten minutes.
        """
        samples = self._samples[name]
        if len(samples) < 8:
            return 0.0, 0.0
        seconds = samples[-1][0] - samples[0][0]
        warm = samples[int(len(samples) * WARM_UP_SHARE) :]
        if seconds >= SHORT_SECONDS:
            slope = statistics.linear_regression([at for at, _ in warm], [rss for _, rss in warm]).slope
            return slope * GROWTH_SECONDS, GROWTH_SECONDS
        some = max(1, len(warm) // 4)
        return (
            statistics.median(rss for _, rss in warm[-some:]) - statistics.median(rss for _, rss in warm[:some]),
            seconds,
        )

    def lines(self) -> list[str]:
        """The memory of each process, and its growth."""
        found = []
        for name, samples in self._samples.items():
            if samples:
                grown, seconds = self.growth(name)
                most = max(rss for _, rss in samples)
                found.append(
                    f"{name}: {samples[-1][1] / MIB:.0f} MiB, at most {most / MIB:.0f} MiB; "
                    f"grows by {grown / MIB:+.1f} MiB in {seconds:.0f} s"
                )
        return found

    def figures(self) -> dict[str, dict[str, float]]:
        """The same for programs, in MiB."""
        found = {}
        for name, samples in self._samples.items():
            if samples:
                grown, seconds = self.growth(name)
                found[name] = {
                    "at_first": round(samples[0][1] / MIB, 1),
                    "most": round(max(rss for _, rss in samples) / MIB, 1),
                    "at_last": round(samples[-1][1] / MIB, 1),
                    "growth": round(grown / MIB, 2),
                    "growth_seconds": round(seconds, 1),
                }
        return found

    def problems(self) -> list[str]:
        """The processes that ended or grew too much."""
        found = [f"{name} has ended" for name in sorted(self._ended)]
        for name in self._samples:
            grown, seconds = self.growth(name)
            most = GROWTH_BYTES_MAX if seconds >= GROWTH_SECONDS else SHORT_GROWTH_BYTES_MAX
            if grown > most:
                found.append(f"{name} grows by {grown / MIB:.1f} MiB in {seconds:.0f} s; {most / MIB:.0f} are allowed")
        return found
