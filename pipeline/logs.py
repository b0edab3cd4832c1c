"""The log lines of all processes on standard error: text for people, or one JSON object a line for machines.

Fields of a JSON line: `time` (UTC, RFC 3339), `level`, `logger`, `process` (Sluice's name for it), `pid`, `message`,
`action` (what happened, from a closed set of words), its details (`request_id`, `partition`, `offset`, …), and `error`
with the traceback if there is one.
"""

import logging
import time
from typing import Any, Final, TextIO

from pythonjsonlogger.core import LogData
from pythonjsonlogger.msgspec import MsgspecFormatter

from pipeline.secrets import hide_secrets
from pipeline.text import on_its_lines, on_one_line

_HUMAN: Final = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"
_TIME: Final = "%Y-%m-%dT%H:%M:%S"
# At DEBUG these libraries would write thousands of lines a second, none of them about an event.
_TALKATIVE: Final = ("asyncio", "kafka", "amqp", "kombu", "sanic.root")


class _HumanLines(logging.Formatter):
    """One line for each record, without passwords, whatever its message contains; a traceback below it is indented."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line. Text from a client or a server can't start another line in it."""
        return on_one_line(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback below it."""
        first, *rest = hide_secrets(super().format(record)).split("\n")
        return "\n".join([first, *(f"  {on_its_lines(line)}" for line in rest)])


def _hidden(value: Any) -> Any:
    """A value for JSON without passwords in any of its texts. Celery logs a failed task with a dict of its parts."""
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {hide_secrets(str(name)): _hidden(one) for name, one in value.items()}
        case list() | tuple():
            return [_hidden(one) for one in value]
        case _:
            return hide_secrets(str(value))


class _JsonLines(MsgspecFormatter):
    """One JSON object a line, without passwords."""

    def __init__(self, process: str) -> None:
        super().__init__(["levelname", "name", "process", "message"], rename_fields={"exc_info": "error"})
        self._process = process

    def process_log_record(self, log_data: LogData) -> LogData:
        """Put the fields that every line has first, under their names."""
        rest = dict(log_data)
        fields: dict[str, Any] = {
            "time": rest.pop("time"),
            "level": rest.pop("levelname"),
            "logger": rest.pop("name"),
            "process": self._process,
            "pid": rest.pop("process"),
            "message": rest.pop("message"),
        }
        fields |= {name: value for name, value in rest.items() if value is not None}
        return super().process_log_record(_hidden(fields))

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Add the record's fields, and its time in RFC 3339 format."""
        super().add_fields(log_data, record, message_dict)
        log_data["time"] = f"{time.strftime(_TIME, time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def configure(*, level: str, form: str, process: str, stream: TextIO | None = None) -> logging.Handler:
    """Send all log records of this process to standard error (or `stream`); returns the only handler.

    `level` is one of LOG_LEVELS, `form` one of LOG_FORMATS, `process` the name of this process in each JSON line.
    Replaces the configuration of an earlier call.
    """
    handler = logging.StreamHandler(stream)
    if form == "json":
        handler.setFormatter(_JsonLines(process))
    else:
        handler.setFormatter(_HumanLines(_HUMAN, _TIME))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    return handler
