"""What processes write to standard error: lines for people, or one JSON object a line for machines.

Fields of a JSON line: `time` (UTC, RFC 3339), `level`, `logger`, `process` (which of ours), `pid`, `message`, `action`
(what happened, from a closed set of words), what belongs to it (`request_id`, `partition`, `offset`, …), and `error`
with the traceback where there is one.
"""

import logging
import time
from typing import Any, Final, TextIO

from pythonjsonlogger.core import LogData
from pythonjsonlogger.msgspec import MsgspecFormatter

from pipeline.secrets import hide_secrets
from pipeline.text import on_its_lines, on_one_line

FORMATS: Final = ("human", "json")
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")

_HUMAN: Final = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"
_TIME: Final = "%Y-%m-%dT%H:%M:%S"
# Libraries whose own account at DEBUG would be thousands of lines a second, none of them about an event.
_TALKATIVE: Final = ("asyncio", "kafka", "amqp", "kombu", "sanic.root")


class _HumanLines(logging.Formatter):
    """One line a record without passwords, whatever is in its message; a traceback below it is indented."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, in which whatever a client or a server has sent can't begin another."""
        return on_one_line(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback below it."""
        first, *rest = hide_secrets(super().format(record)).split("\n")
        return "\n".join([first, *(f"  {on_its_lines(line)}" for line in rest)])


class _JsonLines(MsgspecFormatter):
    """One JSON object a line, without passwords."""

    def __init__(self, process: str) -> None:
        super().__init__(["levelname", "name", "process", "message"], rename_fields={"exc_info": "error"})
        self._process = process

    def process_log_record(self, log_data: LogData) -> LogData:
        """Put the fields that every line has in front, under their names."""
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
        return super().process_log_record(
            {name: hide_secrets(value) if isinstance(value, str) else value for name, value in fields.items()}
        )

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Take the record's fields, and its time as RFC 3339 has it."""
        super().add_fields(log_data, record, message_dict)
        log_data["time"] = f"{time.strftime(_TIME, time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def configure(*, level: str, form: str, process: str, stream: TextIO | None = None) -> logging.Handler:
    """Send everything that is logged in this process to standard error (or `stream`); returns the one handler.

    `level` is one of LEVELS, `form` one of FORMATS, `process` what this one is called in each JSON line. What an
    earlier call has set is replaced.
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
