"""Control events as rows of the page: what is rare first, and the steps of the rate policy in one row."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from pipeline.event_fold import FoldedEvents, folded, short_names
from pipeline.event_text import began
from pipeline.ports.control import ControlEvent
from pipeline.status import event_document

_logger = logging.getLogger(__name__)

ROWS_MAX: Final = 50
_ROUTINE_ROWS_MAX: Final = 10


def event_rows(events: Sequence[ControlEvent]) -> list[dict[str, Any]]:
    """Rows for these events, which are oldest first: the rare ones, then the routine; each newest first.

    An event may be of any version. A row that fails in spite of that is left out.
    """
    rows = folded(events)
    routine = [row for row in reversed(rows) if row.is_routine][:_ROUTINE_ROWS_MAX]
    rare = [row for row in reversed(rows) if not row.is_routine][: ROWS_MAX - len(routine)]
    shown = [*rare, *routine]
    names = short_names(row.newest.actor for row in shown)
    return list(_documents(shown, names))


def _documents(rows: Iterable[FoldedEvents], names: dict[str, str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        try:
            yield _document(row, names)
        except Exception:  # a page without this row is better than none
            _logger.exception(
                "left out of the page because of a defect: control event %s", row.newest.id,
                extra={"action": "event_row_failed"},
            )  # fmt: skip


def _document(row: FoldedEvents, names: dict[str, str]) -> dict[str, Any]:
    newest = row.newest
    return event_document(newest) | {
        "what": row.what,
        "by": names[newest.actor],
        "byWhole": newest.actor,
        "count": sum(event.count for event in row.events),
        "firstAt": began(row.events),
        "isRoutine": row.is_routine,
    }
