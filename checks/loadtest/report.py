"""The report: a table and a picture, as one HTML file that opens offline, and the picture as PNG."""

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from checks.loadtest.scenario import DEGRADED_ABOVE_SECONDS, TARGET_SECONDS, Limits
from checks.loadtest.verdict import Figures, Request, Sample
from pipeline.policies.drain_time import CRITICAL_SECONDS

_HEADS: Final = (
    "phase", "offered/s", "admitted/s", "refused/s", "other", "p50, p99 admitted", "p50, p99 refused",
    "lag, time to drain at most", "health", "breaker", "expected", "verdict",
)  # fmt: skip
_STYLE: Final = """
:root{color-scheme:light dark;font:15px/1.45 system-ui,sans-serif}
body{max-width:1100px;margin:2rem auto;padding:0 1rem}
.table{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.3rem .55rem;border-bottom:1px solid #8886;text-align:right}
th:first-child,td:first-child,td.words{text-align:left}
.held::before{content:"\\2714  "}.failed::before{content:"\\2718  "}.failed{font-weight:700}
figure{margin:1.5rem 0;background:#fff;border-radius:8px;padding:.5rem;overflow-x:auto}svg{max-width:100%;height:auto}
"""


def row(found: Figures) -> list[str]:
    """A phase as texts, in the order of the table."""
    seconds = max(found.end - found.begin, 0.001)  # a phase may end at once if the system is gone
    return [
        found.phase.name,
        f"{found.offered / seconds:,.0f}",
        f"{found.admitted / seconds:,.0f}",
        f"{found.refused / seconds:,.0f}",
        f"{found.other:,}",
        _times(found.p50_admitted, found.p99_admitted) if found.admitted else "",
        _times(found.p50_refused, found.p99_refused) if found.refused else "",
        f"{found.lag_max:,}" + ("" if found.drain_max is None else f", {found.drain_max:.1f} s"),
        ", ".join(found.states),
        ", ".join(found.breakers),
        found.phase.expects,
        "; ".join(found.problems) or "held",
    ]


def backlog(found: Figures) -> str:
    """The backlog of a phase in words, with the figures of drain_time if it ran."""
    words = [f"lag up to {found.lag_max:,}"]
    if found.drain_max is not None:
        words.append(f"{found.drain_max:.1f} s to drain")
    if found.last is not None and found.last.capacity is not None:
        words.append(f"capacity {found.last.capacity:,.0f}/s at the end")
    return ", ".join(words)


def _times(*seconds: float) -> str:
    return ", ".join(f"{one * 1000:,.0f} ms" for one in seconds)


@dataclass(frozen=True)
class Series:
    """The data of the picture: by second since the first phase began, and by sample."""

    offered: list[float]
    admitted: list[float]
    shadow_admitted: list[float] | None  # events the shadow policy would have admitted; None: no shadow
    answers: dict[str, list[float]]  # requests by their status: 202, 429, other


def series_of(requests: Sequence[Request], samples: Sequence[Sample], *, begin: float, end: float) -> Series:
    """Sum the requests up by second."""
    seconds = range(int(end - begin) + 1)
    offered, admitted = ([0.0] * len(seconds) for _ in range(2))
    answers = {name: [0.0] * len(seconds) for name in ("202", "429", "other")}
    for request in requests:
        at = int(request.due - begin)
        if 0 <= at < len(seconds):
            offered[at] += request.events
            admitted[at] += request.events if request.status == 202 else 0
            answers[str(request.status) if request.status in (202, 429) else "other"][at] += 1
    if all(sample.shadow is None for sample in samples):
        return Series(offered, admitted, None, answers)
    limits = [_shadow_at(samples, begin + second + 0.5) for second in seconds]
    would = [min(wanted, limit) for wanted, limit in zip(offered, limits, strict=True)]
    return Series(offered, admitted, would, answers)


def _shadow_at(samples: Sequence[Sample], at: float) -> float:
    """The shadow's rate at a time: from the last sample before it that has one."""
    known = [sample.shadow for sample in samples if sample.at <= at and sample.shadow is not None]
    first = next((sample.shadow for sample in samples if sample.shadow is not None), 0.0)
    return known[-1] if known else first


def picture(
    phases: Sequence[Figures], requests: Sequence[Request], samples: Sequence[Sample], limits: Limits, form: str
) -> bytes:
    """Rates, lag, time to drain, statuses and breaker over time with the phases marked; `form` is svg or png.

    It has the lag's thresholds if bands decide or are shown, and the time to drain if `drain_time` runs.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    begin, end = phases[0].begin, phases[-1].end
    series = series_of(requests, samples, begin=begin, end=end)
    times = [sample.at - begin for sample in samples]
    has_drain = any(sample.drain is not None for sample in samples)
    heights = [3.4, 2.0 if has_drain else 3.0, *([2.5] if has_drain else []), 2.0, 0.8]
    figure, axes = pyplot.subplots(
        len(heights), 1, sharex=True, figsize=(11, 1.02 * sum(heights)), height_ratios=heights, layout="tight"
    )
    top = _draw_rates(axes[0], series, times, samples, limits)
    _draw_lag(axes[1], times, samples, limits)
    if has_drain:
        _draw_drain(axes[2], times, samples)
    _draw_answers(axes[-2], series)
    _draw_breaker(axes[-1], times, samples)
    for axis in axes:
        for number, found in enumerate(phases):
            if number % 2:
                axis.axvspan(found.begin - begin, found.end - begin, color="#8882", linewidth=0)
        axis.grid(alpha=0.25)
        axis.set_xlim(0, max(end - begin, 1))
    for found in phases:
        axes[0].text(
            found.begin - begin + 0.4, top * 0.96, found.phase.name, fontsize=7, va="top", rotation=90,
            bbox={"facecolor": "white", "alpha": 0.8, "pad": 1, "linewidth": 0},
        )  # fmt: skip
    buffer: Any = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=110)
    pyplot.close(figure)
    return bytes(buffer.getvalue())


def _draw_rates(axis: Any, series: Series, times: list[float], samples: Sequence[Sample], limits: Limits) -> float:
    """Offered and admitted events, and the limits; returns the scale's end."""
    bins = range(len(series.offered))
    name = limits.policy
    top = limits.rate_max * (2.8 if limits.shadow else 2.2)
    axis.plot(bins, series.offered, color="#7a4fb0", linestyle=":", label="offered")
    axis.plot(bins, series.admitted, color="#1c5fc2", label=f"admitted by {name}")
    axis.step(
        times, [sample.rate for sample in samples], where="post", color="#444", linestyle="--", linewidth=1,
        label=f"rate limit of {name}",
    )  # fmt: skip
    if series.shadow_admitted is not None:
        axis.plot(
            bins, series.shadow_admitted, color="#c2571c", linestyle="-.",
            label=f"{limits.shadow} would have admitted (shadow)",
        )  # fmt: skip
    if any(sample.capacity is not None for sample in samples):
        axis.step(
            times, [sample.capacity if sample.capacity is not None else math.nan for sample in samples], where="post",
            color="#0d7a4d", linewidth=1, label="capacity, as drain_time measures it",
        )  # fmt: skip
    if limits.sink is not None:
        axis.axhline(limits.sink, color="#0d7a4d", linestyle=":", linewidth=1, label="what PostgreSQL stores")
    axis.set_ylim(0, top)
    # Above the chart: the phases' names and the lines reach its top.
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, fontsize=8, ncols=3, frameon=False)
    axis.set_title("Events a second (5 times the rate is beyond the scale)", loc="left", fontsize=10, pad=36)
    return top


def _draw_lag(axis: Any, times: list[float], samples: Sequence[Sample], limits: Limits) -> None:
    axis.plot(times, [sample.lag or 0 for sample in samples], color="#1c5fc2", label="lag")
    if limits.lag_degraded is not None and limits.lag_critical is not None and not limits.follows_drain:
        axis.axhline(
            limits.lag_degraded, color="#8a5a00", linestyle="--", label=f"degraded from {limits.lag_degraded:,}"
        )
        axis.axhline(
            limits.lag_critical, color="#b3201f", linestyle=":", label=f"critical above {limits.lag_critical:,}"
        )
    axis.set_ylim(0)
    axis.legend(loc="upper right", fontsize=8)
    axis.set_title("Lag, events", loc="left", fontsize=10)


def _draw_drain(axis: Any, times: list[float], samples: Sequence[Sample]) -> None:
    drains = [sample.drain if sample.drain is not None else math.nan for sample in samples]
    axis.plot(times, drains, color="#1c5fc2", label="time to drain")
    axis.axhline(TARGET_SECONDS, color="#0d7a4d", linewidth=1, label=f"target {TARGET_SECONDS:g} s")
    for above, colour, style, word in (
        (DEGRADED_ABOVE_SECONDS, "#8a5a00", "--", "degraded"),
        (CRITICAL_SECONDS[0], "#b3201f", ":", "critical"),
    ):
        axis.axhline(above, color=colour, linestyle=style, label=f"{word} above {above:g} s")
    highest = max((drain for drain in drains if not math.isnan(drain)), default=0.0)
    axis.set_ylim(0, max(1.15 * highest, 1.25 * DEGRADED_ABOVE_SECONDS))
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, fontsize=8, ncols=4, frameon=False)
    axis.set_title("Time to drain, s, of the worst partition", loc="left", fontsize=10)


def _draw_answers(axis: Any, series: Series) -> None:
    bins = range(len(series.offered))
    for name, colour, style in (("202", "#0d7a4d", "-"), ("429", "#8a5a00", "--"), ("other", "#b3201f", ":")):
        axis.plot(bins, series.answers[name], color=colour, linestyle=style, label=name)
    axis.set_yscale("symlog", linthresh=10)
    axis.set_ylim(0)
    axis.legend(loc="upper right", fontsize=8)
    axis.set_title("Responses a second", loc="left", fontsize=10)


def _draw_breaker(axis: Any, times: list[float], samples: Sequence[Sample]) -> None:
    axis.step(times, [float(sample.breaker != "closed") for sample in samples], where="post", color="#b3201f")
    axis.set_yticks([0, 1], ["closed", "open"])
    axis.set_ylim(-0.2, 1.2)
    axis.set_title("Circuit breaker", loc="left", fontsize=10)
    axis.set_xlabel("seconds")


def page(phases: Sequence[Figures], verdict: str, whole: Sequence[str], notes: Sequence[str], svg: bytes) -> str:
    """The HTML file, complete in itself."""
    held = not whole and not any(found.problems for found in phases)
    lines = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Load test: {html.escape(verdict)}</title><style>{_STYLE}</style>",
        f"<h1 class={'held' if held else 'failed'}>{html.escape(verdict)}</h1>",
        *(f"<p class=failed>{html.escape(problem)}</p>" for problem in whole),
        f"<figure>{svg.decode().partition('<svg')[1]}{svg.decode().partition('<svg')[2]}</figure>",
        "<div class=table><table><thead><tr>" + "".join(f"<th>{head}" for head in _HEADS) + "</thead><tbody>",
    ]
    for found in phases:
        *cells, judged = row(found)
        texts = "".join(f"<td{' class=words' if index > 7 else ''}>{html.escape(c)}" for index, c in enumerate(cells))
        lines.append(f"<tr>{texts}<td class='words {'failed' if found.problems else 'held'}'>{html.escape(judged)}")
    lines += ["</tbody></table></div><ul>", *(f"<li>{html.escape(note)}" for note in notes), "</ul></html>"]
    return "\n".join(lines)


def write(folder: Path, page_text: str, png: bytes) -> None:
    """Write load-report.html and load-report.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "load-report.html").write_text(page_text)
    (folder / "load-report.png").write_bytes(png)
