"""The page as it is before its script runs, and without one: the verdict and the figures of the moment. Pure.

The script replaces all of it with the first message of the stream.
"""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from pipeline.event_text import clock_time

_LEVELS: Final = {"healthy": "Healthy", "degraded": "Degraded", "critical": "Critical", "unknown": "Unknown"}
_UNKNOWN: Final = "\u2013"
_CARDS: Final = (
    "admitted", "rate", "lag", "drain", "refused", "bucket", "breaker", "consumption", "controller", "override",
)  # fmt: skip
# What the page has in their places: comments, and an attribute.
_SEVERITY: Final = 'data-severity="unknown"'
_LEVEL, _HEADLINE, _ANSWERS, _NOTE, _LINKS, _SPANS = (
    "<!-- level -->",
    "<!-- headline -->",
    "<!-- answers -->",
    "<!-- made at -->",
    "<!-- links -->",
    "<!-- spans -->",
)
_BUTTONS: Final = "".join(
    f'<button type="button" data-span="{span}" aria-pressed="{"false" if span else "true"}">{words}</button>'
    for span, words in (("", "15 min"), ("6h", "6 h"), ("7d", "7 d"))
)
_CHOICE: Final = (
    f'<div role="group" aria-label="Time that the charts show">{_BUTTONS}</div>'
    '<span id="span-note" role="status"></span>'
)
_NO_CHOICE: Final = "<small>6 hours and 7 days need a Prometheus (<code>PROMETHEUS_URL</code>)</small>"
MARKERS: Final = (
    _SEVERITY,
    _LEVEL,
    _HEADLINE,
    _ANSWERS,
    _NOTE,
    _LINKS,
    _SPANS,
    *(f"<!-- {name} -->" for name in _CARDS),
)


def first_sight(page: str, document: Mapping[str, Any]) -> bytes:
    """The page with this document, which is that of the stream (`page_document`)."""
    reasons = document["reasons"]
    parts = {
        _SEVERITY: f'data-severity="{escape(document["status"])}"',
        _LEVEL: _LEVELS.get(document["status"], ""),
        _HEADLINE: escape(reasons[0]["what"] if reasons else _well(document)),
        _ANSWERS: "".join(
            _answer(reason, document["runbooksUrl"], is_first=i == 0) for i, reason in enumerate(reasons)
        ),
        _NOTE: escape(clock_time(document["at"])),
        _SPANS: _CHOICE if document["hasLongCharts"] else _NO_CHOICE,
        _LINKS: "".join(
            f'<li><a href="{escape(link["url"])}">{escape(link["name"])}</a></li>' for link in document["links"]
        ),
    }
    parts |= {f"<!-- {name} -->": escape(words) for name, words in zip(_CARDS, _figures(document), strict=True)}
    for marker, text in parts.items():
        page = page.replace(marker, text, 1)
    return page.encode()


def _well(document: Mapping[str, Any]) -> str:
    admitted, lag = document["admitted"], document["consumerLag"]
    taken = f"{_events(admitted)} per second {'is' if _is_one(admitted) else 'are'} admitted"
    return f"All is well: {taken}, {_events(lag)} {'waits' if _is_one(lag) else 'wait'} to be stored"


def _events(count: float | None) -> str:
    return f"{_number(count)} event{'' if _is_one(count) else 's'}"


def _is_one(count: float | None) -> bool:
    return count is not None and round(count) == 1


def _answer(reason: Mapping[str, Any], runbooks_url: str, *, is_first: bool) -> str:
    """A problem: what happens by itself, where to look, and the command. The first one's text is the headline."""
    rows = [("By itself", escape(reason["byItself"])), ("Look at", _worded(reason["lookAt"]))]
    if reason["command"]:
        shell = f'<a href="{escape(runbooks_url.rstrip("/"))}#prepare-a-shell">in a prepared shell</a>'
        rows.append(("Run", f"<code>{escape(reason['command'])}</code> {shell}"))
    if reason["runbook"]:
        rows.append(
            ("Runbook", f'<a href="{escape(runbooks_url + reason["runbook"])}">{escape(reason["runbook"])}</a>')
        )
    head = "" if is_first else f"<p>{escape(reason['what'])}</p>"
    return f'{head}<dl class="answer">{"".join(f"<div><dt>{t}</dt><dd>{w}</dd></div>" for t, w in rows if w)}</dl>'


def _worded(text: str) -> str:
    """`commands` in a text as code."""
    parts = (escape(part) for part in text.split("`"))
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _figures(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The value of each card."""
    age, override = document["controllerAgeSeconds"], document["rateOverride"]
    return (
        f"{_number(document['admitted'])} /s",
        f"{_number(document['rateLimit'])} /s",
        f"{_number(document['consumerLag'])} events",
        f"{_number(document['drainRate'])} /s",
        f"{_number(document['refused'])} /s",
        f"{_number(document['availablePermissions'])} tokens",
        document["circuitBreaker"],
        document["consumption"],
        _UNKNOWN if age is None else f"{age:,.0f} s ago",
        "none" if override is None else f"{_number(override['rate'])} /s",
    )


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"
