"""Control events as people read them: steps of the rate policy between two other events are one row. Pure."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pipeline.event_text import event_text, rate_steps_text
from pipeline.names import ControlEventKind
from pipeline.ports.control import ControlEvent

# So many events are read: the steps of the rate must not push out a breaker that opened an hour ago.
EVENTS_READ: Final = 500
# Names of processes: control-4ba73c@host/22567. A person is user@host.
_PROCESS: Final = re.compile(r"(?P<kind>[a-z]+)(?P<system>-[0-9a-f]{6})@[^/]*/(?P<pid>\d+)")


@dataclass(slots=True)
class FoldedEvents:
    """One event, or several steps of the rate without another event between them; oldest first."""

    events: list[ControlEvent] = field(default_factory=list)
    is_routine: bool = False  # steps of the rate policy

    @property
    def newest(self) -> ControlEvent:
        """The last one, whose time, actor and reason are shown."""
        return self.events[-1]

    @property
    def what(self) -> str:
        """What happened, in words."""
        return event_text(self.newest) if len(self.events) == 1 else rate_steps_text(self.events)


def folded(events: Iterable[ControlEvent]) -> list[FoldedEvents]:
    """The rows for these events; both oldest first."""
    rows: list[FoldedEvents] = []
    for event in events:
        is_step = _is_step(event)
        if not (is_step and rows and rows[-1].is_routine):
            rows.append(FoldedEvents(is_routine=is_step))
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


def short_names(actors: Iterable[str]) -> dict[str, str]:
    """A short name for each process, as long as it needs to be to tell them apart. People keep their names."""
    whole = set(actors)
    found = {actor: match for actor in whole if (match := _PROCESS.fullmatch(actor)) is not None}
    names = {actor: actor for actor in whole}
    for form in ("{kind}{system}/{pid}", "{kind}{system}", "{kind}"):
        shorter = {actor: form.format(**match.groupdict()) for actor, match in found.items()}
        taken = list(shorter.values())
        names |= {actor: name for actor, name in shorter.items() if taken.count(name) == 1}
    return names
