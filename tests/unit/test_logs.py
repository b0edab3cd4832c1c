"""Log lines, for people and for machines."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from celery.apps.beat import Beat

from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline import logs
from pipeline.errors import SettingsError, SinkUnavailableError, SluiceError, in_full
from pipeline.names import LOG_FORMATS
from pipeline.settings import Settings
from pipeline.text import on_its_lines, on_one_line
from tasks import startup


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def _said(form: str, level: str = "INFO") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level=level, form=form, process="ingest", stream=stream)
    return stream


def test_what_a_signal_makes_a_worker_print_is_a_line_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(startup.worker_program, "safe_say", None)
    worker = SimpleNamespace(quiet=False)
    startup._prepare_output(Settings(log_format="json"), worker)
    startup.worker_program.safe_say("worker: Warm shutdown (MainProcess)", sys.__stdout__)
    said = capfd.readouterr()
    assert (worker.quiet, said.out) == (True, "")
    assert json.loads(said.err)["message"] == "worker: Warm shutdown (MainProcess)"


def test_a_worker_and_beat_print_their_banners_only_where_lines_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    safe_say = startup.worker_program.safe_say
    monkeypatch.setattr(Beat, "run", lambda _: None)
    for form in LOG_FORMATS:
        settings = Settings(log_format=form)
        worker = SimpleNamespace(quiet=False)
        beat: Any = object.__new__(startup.QuietBeat)
        beat.app, beat.quiet = SimpleNamespace(sluice_settings=settings), False
        monkeypatch.setattr(startup.worker_program, "safe_say", safe_say)
        startup._prepare_output(settings, worker)
        beat.run()
        is_quiet = form == "json"
        assert (worker.quiet, beat.quiet) == (is_quiet, is_quiet)
        assert (startup.worker_program.safe_say is not safe_say) is is_quiet


def test_a_json_line_has_the_message_and_what_belongs_to_it() -> None:
    # Given text that JSON escapes and a line break
    stream = _said("json")
    logging.getLogger("a.b").warning('ü "%s"\n', 1, extra={"action": "tested", "request_id": "r-1", "offset": 7})
    # Then it is one line, with its fields in this order
    [line] = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert list(fields) == ["time", "level", "logger", "process", "pid", "message", "action", "request_id", "offset"]
    assert fields["message"] == 'ü "1"\n'
    assert (fields["level"], fields["logger"], fields["process"]) == ("WARNING", "a.b", "ingest")
    said_at = datetime.fromisoformat(fields["time"])
    assert abs((datetime.now(UTC) - said_at).total_seconds()) < WAIT_SECONDS_MAX


def test_an_error_is_in_the_same_json_line() -> None:
    stream = _said("json")
    try:
        int("what went wrong")
    except ValueError:
        logging.getLogger("a").exception("it failed")
    [line] = stream.getvalue().splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["error"]


def test_a_json_line_has_no_password_in_what_belongs_to_it_either() -> None:
    stream = _said("json")
    url = "postgresql://app:hunter2@db/sluice"
    # As Celery logs a task that failed
    data = {"id": "one", "exc": f"OperationalError({url})", "args": [url, (url, 7)], url: None, "runtime": 0.5}
    logging.getLogger("celery.app.trace").error("it failed", extra={"data": data, "cause": ValueError(url)})
    line = stream.getvalue()
    assert "hunter2" not in line
    said = json.loads(line)
    hidden = url.replace("hunter2", "***")
    assert said["data"]["exc"] == f"OperationalError({hidden})"
    assert (said["data"]["id"], said["data"]["runtime"], said["cause"]) == ("one", 0.5, hidden)


def test_a_line_for_people_begins_with_its_time_in_utc() -> None:
    stream = _said("human")
    logging.getLogger("a").info("words", extra={"action": "tested"})
    time, rest = stream.getvalue().split(" ", 1)
    assert datetime.fromisoformat(time).utcoffset() == datetime.now(UTC).utcoffset()
    assert rest == "INFO    a: words\n"


def test_the_level_holds_for_us_and_libraries_stay_quiet() -> None:
    stream = _said("human", "DEBUG")
    logging.getLogger("pipeline.any").debug("ours")
    logging.getLogger("kafka.conn").debug("theirs")
    assert "ours" in stream.getvalue()
    assert "theirs" not in stream.getvalue()


def test_a_second_call_replaces_the_first() -> None:
    first, second = _said("human"), _said("human")
    logging.getLogger("a").info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)


def test_warnings_are_lines_too() -> None:
    stream = _said("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert json.loads(stream.getvalue())["logger"] == "py.warnings"


@pytest.mark.parametrize(("name", "value"), [("log_level", "LOUD"), ("log_format", "xml")])
def test_words_that_are_none_of_the_choices_are_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name.upper()}='{value}' is none of "):
        Settings.from_environ({name.upper(): value})


FORGED = "id\r\n2026-01-01T00:00:00.000Z ERROR   a: forged\x1b[2J\x9b1m\u2028\u202e"


def test_what_clients_send_begins_no_line_for_people_and_reaches_no_terminal_raw() -> None:
    stream = _said("human")
    # Given an id with line breaks and an escape sequence, in a message and in an error's text
    logging.getLogger("a").warning("event %s", FORGED)
    try:
        raise ValueError(FORGED)  # noqa: TRY301
    except ValueError:
        logging.getLogger("a").exception("it failed")
    # Then each record has one line, and a traceback is indented below it
    lines = stream.getvalue().split("\n")[:-1]
    assert [line for line in lines if not line.startswith("  ")] == [lines[0], lines[1]]
    assert lines[0].endswith(r"event id\r\n2026-01-01T00:00:00.000Z ERROR   a: forged\x1b[2J\x9b1m\u2028\u202e")
    assert not set(stream.getvalue()) & set("\r\x1b\x9b\u2028\u202e")


def test_the_words_of_an_error_reach_no_terminal_raw() -> None:
    said = f"PostgreSQL says:\n\tKey (event_id)=({FORGED})"
    for error in (SluiceError(said), SinkUnavailableError(said)):
        assert not set(str(error)) & set("\r\x1b\x9b\u2028\u202e")
        assert str(error).startswith("PostgreSQL says:\n\tKey")
    assert in_full(said).isprintable()


def test_text_of_several_lines_keeps_them() -> None:
    assert on_its_lines("a\tb\nc\x1b[1m") == "a\tb\nc\\x1b[1m"
    assert on_one_line("a\tb\nü \\ 😀") == "a\\tb\\nü \\ 😀"
