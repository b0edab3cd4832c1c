"""The report: a table and a picture, as one HTML file that opens offline, and the picture as PNG."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from checks.loadtest.scenario import Limits
from checks.loadtest.verdict import Figures, Request, Sample

_HEADS: Final = (
    "phase", "offered/s", "admitted/s", "refused/s", "other", "p50, p99 admitted", "p50, p99 refused", "lag at most",
    "health", "breaker", "expected", "verdict",
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
    seconds = max(found.end - found.begin, 0.001)  # a phase may end as it begins, where the system went away
    return [
        found.phase.name,
        f"{found.offered / seconds:,.0f}",
        f"{found.admitted / seconds:,.0f}",
        f"{found.refused / seconds:,.0f}",
        f"{found.other:,}",
        _times(found.p50_admitted, found.p99_admitted) if found.admitted else "",
        _times(found.p50_refused, found.p99_refused) if found.refused else "",
        f"{found.lag_max:,}",
        ", ".join(found.states),
        ", ".join(found.breakers),
        found.phase.expects,
        "; ".join(found.problems) or "held",
    ]


def _times(*seconds: float) -> str:
    return ", ".join(f"{one * 1000:,.0f} ms" for one in seconds)


def picture(
    phases: Sequence[Figures], requests: Sequence[Request], samples: Sequence[Sample], limits: Limits, form: str
) -> bytes:
    """Rate, lag, statuses and breaker over time with the phases marked; `form` is svg or png."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    begin, end = phases[0].begin, phases[-1].end
    bins = range(int(end - begin) + 1)
    sums: dict[str, list[float]] = {name: [0.0] * len(bins) for name in ("offered", "admitted", "202", "429", "other")}
    for request in requests:
        at = int(request.due - begin)
        if 0 <= at < len(bins):
            sums["offered"][at] += request.events
            sums["admitted"][at] += request.events if request.status == 202 else 0
            sums[str(request.status) if request.status in (202, 429) else "other"][at] += 1
    times = [sample.at - begin for sample in samples]
    figure, axes = pyplot.subplots(4, 1, sharex=True, figsize=(11, 9), height_ratios=(3, 3, 2, 0.8), layout="tight")
    rates, lags, statuses, breaker = axes
    rates.plot(bins, sums["offered"], color="#7a4fb0", linestyle=":", label="offered events/s")
    rates.plot(bins, sums["admitted"], color="#1c5fc2", label="admitted events/s")
    rates.step(
        times, [sample.rate for sample in samples], where="post", color="#444", linestyle="--", label="rate limit"
    )
    rates.set_ylim(0, limits.rate_max * 2.2)
    rates.legend(loc="upper right", fontsize=8)
    rates.set_title("Events a second (5 times the rate is beyond the scale)", loc="left", fontsize=10)
    lags.plot(times, [sample.lag or 0 for sample in samples], color="#1c5fc2", label="lag")
    if limits.lag_degraded is not None:
        lags.axhline(
            limits.lag_degraded, color="#8a5a00", linestyle="--", label=f"degraded from {limits.lag_degraded:,}"
        )
    if limits.lag_critical is not None:
        lags.axhline(
            limits.lag_critical, color="#b3201f", linestyle=":", label=f"critical above {limits.lag_critical:,}"
        )
    lags.legend(loc="upper right", fontsize=8)
    lags.set_title("Lag, events", loc="left", fontsize=10)
    statuses.plot(bins, sums["202"], color="#0d7a4d", label="202")
    statuses.plot(bins, sums["429"], color="#8a5a00", linestyle="--", label="429")
    statuses.plot(bins, sums["other"], color="#b3201f", linestyle=":", label="other")
    statuses.set_yscale("symlog", linthresh=10)
    statuses.set_ylim(0)
    statuses.legend(loc="upper right", fontsize=8)
    statuses.set_title("Responses a second", loc="left", fontsize=10)
    breaker.step(times, [float(sample.breaker != "closed") for sample in samples], where="post", color="#b3201f")
    breaker.set_yticks([0, 1], ["closed", "open"])
    breaker.set_ylim(-0.2, 1.2)
    breaker.set_title("Circuit breaker", loc="left", fontsize=10)
    breaker.set_xlabel("seconds")
    for axis in axes:
        for number, found in enumerate(phases):
            if number % 2:
                axis.axvspan(found.begin - begin, found.end - begin, color="#8882", linewidth=0)
        axis.grid(alpha=0.25)
        axis.set_xlim(0, max(end - begin, 1))
    for found in phases:
        rates.text(
            found.begin - begin + 0.4, limits.rate_max * 2.1, found.phase.name, fontsize=7, va="top", rotation=90,
            bbox={"facecolor": "white", "alpha": 0.8, "pad": 1, "linewidth": 0},
        )  # fmt: skip
    buffer: Any = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=110)
    pyplot.close(figure)
    return bytes(buffer.getvalue())


def page(phases: Sequence[Figures], verdict: str, whole: Sequence[str], notes: Sequence[str], svg: bytes) -> str:
    """The HTML file, with everything in it."""
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
