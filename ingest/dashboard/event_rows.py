"""Control events as rows of the page: what is rare first, and the steps of the rate policy in one row."""

import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.event_text import began, event_text, rate_steps_text
from pipeline.names import ControlEventKind
from pipeline.ports.control import ControlEvent
from pipeline.status import event_document

_logger = logging.getLogger(__name__)

EVENTS_READ: Final = 500  # the steps of the rate must not push out a breaker that opened an hour ago
ROWS_MAX: Final = 50
_ROUTINE_ROWS_MAX: Final = 10
# Names of processes: control-4ba73c@host/22567. A person is user@host.
_PROCESS: Final = re.compile(r"(?P<kind>[a-z]+)(?P<system>-[0-9a-f]{6})@[^/]*/(?P<pid>\d+)")


@dataclass(slots=True)
class _Row:
    """One event, or several steps of the rate without another event between them; oldest first."""

    events: list[ControlEvent] = field(default_factory=list)
    is_routine: bool = False

    @property
    def newest(self) -> ControlEvent:
        return self.events[-1]


def event_rows(events: Sequence[ControlEvent]) -> list[dict[str, Any]]:
    """Rows for these events, which are oldest first: the rare ones, then the routine; each newest first.

    An event may be of any version. A row that fails in spite of that is left out.
    """
    rows = _folded(events)
    routine = [row for row in reversed(rows) if row.is_routine][:_ROUTINE_ROWS_MAX]
    rare = [row for row in reversed(rows) if not row.is_routine][: ROWS_MAX - len(routine)]
    shown = [*rare, *routine]
    names = _short_names(row.newest.actor for row in shown)
    return list(_documents(shown, names))


def _documents(rows: Iterable[_Row], names: dict[str, str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        try:
            yield _document(row, names)
        except Exception:  # a page without this row is better than none
            _logger.exception(
                "left out of the page because of a defect: control event %s", row.newest.id,
                extra={"action": "event_row_failed"},
            )  # fmt: skip


def _folded(events: Iterable[ControlEvent]) -> list[_Row]:
    rows: list[_Row] = []
    for event in events:
        is_step = _is_step(event)
        if not (is_step and rows and rows[-1].is_routine):
            rows.append(_Row(is_routine=is_step))
        rows[-1].events.append(event)
    return rows


def _is_step(event: ControlEvent) -> bool:
    """Whether it is a step that the rate policy decided, with figures that can be folded.

    What the breaker or an operator does to the rate is rare.
    """
    data = event.data
    if event.kind is not ControlEventKind.RATE_CHANGED or data.get("decided_by", "lag") != "lag":
        return False
    try:
        return all(math.isfinite(float(rate)) for rate in (data["rate"], data.get("previous") or data["rate"]))
    except (KeyError, ValueError):
        return False


def _document(row: _Row, names: dict[str, str]) -> dict[str, Any]:
    newest = row.newest
    what = event_text(newest) if len(row.events) == 1 else rate_steps_text(row.events)
    return event_document(newest) | {
        "what": what,
        "by": names[newest.actor],
        "byWhole": newest.actor,
        "count": sum(event.count for event in row.events),
        "firstAt": began(row.events),
        "isRoutine": row.is_routine,
    }


def _short_names(actors: Iterable[str]) -> dict[str, str]:
    """A short name for each process, as long as it needs to be to tell them apart. People keep their names."""
    whole = set(actors)
    found = {actor: match for actor in whole if (match := _PROCESS.fullmatch(actor)) is not None}
    names = {actor: actor for actor in whole}
    for form in ("{kind}{system}/{pid}", "{kind}{system}", "{kind}"):
        shorter = {actor: form.format(**match.groupdict()) for actor, match in found.items()}
        taken = list(shorter.values())
        names |= {actor: name for actor, name in shorter.items() if taken.count(name) == 1}
    return names
