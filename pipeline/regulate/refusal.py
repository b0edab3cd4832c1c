"""A database or an archive that answers, and can't be used until an operator changes it."""

from pipeline.errors import SinkMisconfiguredError, SinkStandbyError, SluiceError, in_brief
from pipeline.names import REFUSALS, AlarmCode, SinkName
from pipeline.ports.control import ControlState
from pipeline.regulate.sample import Sample


def name_refused_sink(sample: Sample, problem: str) -> None:
    """Report a database or an archive in which nothing can be stored until an operator changes it."""
    if any(alarm.code in REFUSALS for alarm in sample.alarms):
        return
    sink = "database" if sample.sink is SinkName.POSTGRESQL else "archive"
    what = f"The {sink} is refused, and nothing is stored: {problem}"
    sample.critical(AlarmCode.DATABASE_REFUSED, what, f"docs/{sink}.md; events wait in the event log meanwhile")


def is_refused(error: SluiceError, state: ControlState) -> bool:
    """Whether the database can't be used until an operator changes it.

    A standby counts from the second tick in a row that finds it: in a failover, DATABASE_URL may reach the demoted
    server for some seconds. The last tick may have been another process', so its published alarms say what it found.
    """
    if not isinstance(error, SinkStandbyError):
        return isinstance(error, SinkMisconfiguredError)
    last = () if state.rate is None else state.rate.alarms
    return any(in_brief(error) in alarm.what for alarm in last)
