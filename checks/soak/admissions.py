"""Whether more was admitted, in any window of time, than the published rates allow.

A request is admitted at some time between its sending and its answer. So the known admissions within a window are the
202s that were sent and answered in it. The rule counts only these, so it never blames a correct system. It does not
count 503s after admission, because a client can't distinguish them from other 503s.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from checks.soak.found import AdmissionRules, RateSample
from checks.soak.history import Outcome, Request


@dataclass(frozen=True, slots=True)
class Outage:
    """A time (epoch s) in which the control server was unavailable, silent or emptied for some process.

    Ingest continues at the last rate that it knew, with its own bucket. So the earlier rate may stay in force, and the
    control server's bucket may be full when it returns. Each outage causes at most two bursts, one at each end. At each
    end, the bucket of each process may owe a body.
    """

    start: float
    end: float


class RateIntegral:
    """Events that the published rates admit up to a time, as an upper bound.

    Between two samples, the higher rate may have been in force. A lower rate needs `late_seconds` to reach all
    processes. In an outage, a change may reach no process until the outage ends. Bursts after outages are steps.
    """

    def __init__(self, rates: Sequence[RateSample], outages: Sequence[Outage], rules: AdmissionRules) -> None:
        known = [(sample.at, sample.rate) for sample in rates if sample.rate is not None]
        self.rate_max = max([rules.rate_min, *(rate for _, rate in known)])
        ends = [self._in_force_until(index, known, outages, rules) for index in range(len(known))]
        # A rate may have been in force since the previous sample.
        starts = [known[index - 1][0] if index else float("-inf") for index in range(len(known))]
        edges = sorted({edge for edge in (*starts, *ends) if edge not in (float("-inf"), float("inf"))})
        self._edges = edges
        self._rates = self._highest(edges, list(zip(starts, ends, (rate for _, rate in known), strict=True)), rules)
        areas = ((right - left) * rate for left, right, rate in zip(edges, edges[1:], self._rates[1:], strict=False))
        self._areas = list(accumulate(areas, initial=0.0))
        burst = self.rate_max * rules.burst_seconds
        self._steps = sorted(step for outage in outages for step in (outage.start, outage.end + rules.late_seconds))
        self._step_events = burst + rules.ingests * rules.body_events

    @staticmethod
    def _in_force_until(
        index: int, known: list[tuple[float, float]], outages: Sequence[Outage], rules: AdmissionRules
    ) -> float:
        if index + 1 == len(known):
            return float("inf")
        replaced_at = known[index + 1][0]
        for outage in outages:
            if outage.start <= replaced_at <= outage.end + rules.late_seconds:
                replaced_at = outage.end + rules.late_seconds
        return replaced_at + rules.late_seconds

    @staticmethod
    def _highest(edges: list[float], spans: list[tuple[float, float, float]], rules: AdmissionRules) -> list[float]:
        """The highest rate in force before the first edge, between each two, and after the last."""
        highest = [rules.rate_min] * (len(edges) + 1)
        for start, end, rate in spans:
            first = 0 if start == float("-inf") else bisect_right(edges, start)
            last = len(edges) if end == float("inf") else bisect_right(edges, end) - 1
            for index in range(first, last + 1):
                highest[index] = max(highest[index], rate)
        return highest

    def __call__(self, at: float, *, is_end: bool) -> float:
        """The integral up to `at`. A step at `at` itself counts in a window that ends or begins there."""
        if not self._edges:
            area = at * self.rate_max
        else:
            index = bisect_right(self._edges, at)
            if index == 0:
                area = (at - self._edges[0]) * self._rates[0]
            else:
                area = self._areas[index - 1] + (at - self._edges[index - 1]) * self._rates[index]
        steps = bisect_right(self._steps, at) if is_end else bisect_right(self._steps, at - 1e-9)
        return area + steps * self._step_events


def over_admission(
    requests: Sequence[Request], rates: Sequence[RateSample], outages: Sequence[Outage], rules: AdmissionRules
) -> str | None:
    """The worst window with more admissions than allowed, as text; None if there is none.

    For a window from a to b: (202s answered by b) - (202s sent before a) ≤ R(b) - R(a) + burst + body + leases. R is
    the integral of the rate. The bucket may owe one body at b. The scan moves b and keeps the greatest left side over
    all a, so n requests take n·log n.
    """
    acked = [one for one in requests if one.outcome is Outcome.ACKED and one.answered_at is not None]
    if not acked:
        return None
    integral = RateIntegral(rates, outages, rules)
    allowed = integral.rate_max * rules.burst_seconds + rules.body_events + rules.lease_events
    # At equal times, starts come before ends, so a window contains a request that was sent and answered at once.
    moments = sorted(
        [(one.sent_at, 0, one.events) for one in acked]
        + [(float(one.answered_at or 0), 1, one.events) for one in acked]
    )
    sent = answered = 0
    lowest, lowest_at = float("inf"), 0.0
    worst, window = 0.0, (0.0, 0.0)
    for at, is_answer, events in moments:
        if is_answer:
            answered += events
            excess = answered - integral(at, is_end=True) - lowest - allowed
            if excess > worst:
                worst, window = excess, (lowest_at, at)
        else:
            begin = sent - integral(at, is_end=False)
            if begin < lowest:
                lowest, lowest_at = begin, at
            sent += events
    if worst <= 0:
        return None
    start, end = window
    return (
        f"{worst:.0f} events more were admitted in the {end - start:.2f} s from {start:.3f} than the published rates, "
        f"a burst, a body and the leases allow ({allowed:.0f} beyond the rate's integral)"
    )
