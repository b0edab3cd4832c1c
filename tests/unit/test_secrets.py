"""Passwords are shown nowhere: not in errors, not in log lines, not where a URL can't be read."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from urllib.parse import quote, quote_plus

import psycopg2
import pytest

from pipeline import logs, secrets
from pipeline.errors import SettingsError, SinkUnavailableError, in_brief
from pipeline.names import LOG_FORMATS
from pipeline.secrets import hide_secrets
from pipeline.settings import Settings, ignore_variables_of_others

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows the passwords of another."""
    monkeypatch.setattr(secrets, "_known", secrets._KnownSecrets())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no connection to postgresql://sluice:hunter2@db:5432/x: refused", "postgresql://sluice:***@db:5432/x"),
        ("redis://:hunter2@cache:6379/0", "redis://:***@cache:6379/0"),
        ("rediss://u:a/hunter2@b@cache", "rediss://u:***@cache"),
        ('invalid dsn: invalid percent-encoded token: "hunter2%zz"', 'invalid percent-encoded token: "***"'),
        ('forbidden value %00 in percent-encoded value: "hunter2%00"', 'percent-encoded value: "***"'),
        (f"postgresql://u:{'token' * 700}-hunter2@db/x: refused", "postgresql://u:***@db/x: refused"),
        (f"postgresql://u:{'token' * 7000}-hunter2@db/x: refused", "postgresql://u:***@db/x: refused"),
        ("not http://a/x but (redis://a/redis://u:hunter2@cache), ann@host", "(redis://a/redis://u:***@cache), ann@"),
        ("redis://a:hunter2@h1\tredis://b:hunter2@h2", "redis://a:***@h1\tredis://b:***@h2"),
        ("redis://a:hunter2@h1,redis://b:hunter2@h2", "redis://a:***@h2"),
        ("postgresql://db/x?user=u&password=hunter2&sslmode=require", "password=***&sslmode=require"),
        ("host=db password=hunter2 dbname=x", "password=*** dbname=x"),
        ("host=db password='hunter2 x' dbname=x", "password=*** dbname=x"),
    ],
)
def test_a_password_is_hidden_by_its_place(text: str, shown: str) -> None:
    assert shown in hide_secrets(text)
    assert SECRET not in hide_secrets(text)
    assert SECRET not in str(SinkUnavailableError(text))
    assert SECRET not in in_brief(ValueError(text))


@pytest.mark.parametrize(
    ("name", "value", "forms"),
    [
        ("DATABASE_URL", "postgresql://ann:hunter2%2Fx%C3%A4@db/x", ["hunter2%2Fx%C3%A4", "hunter2/xä"]),
        ("REDIS_URL", "redis://:hunter2%0A%22@db/0", ["hunter2%0A%22", 'hunter2\n"', 'hunter2\\n"']),
        ("REDIS_URL", "redis+sentinel://u:hunter2@a:1,b:2/main/0", ["hunter2"]),
        ("DATABASE_URL", "postgresql://db/x?user=u&password=hunter2%21", ["hunter2%21", "hunter2!"]),
        ("KAFKA_PASSWORD", "hunter2", ["hunter2"]),
        ("DATABASE_URL", "postgresql://ann:hunter2 x@db/x", ["hunter2 x"]),  # refused, and hidden all the same
    ],
)  # fmt: skip
def test_a_password_of_the_settings_is_hidden_wherever_it_is(name: str, value: str, forms: list[str]) -> None:
    # Given a process with a password in its settings
    with contextlib.suppress(SettingsError):
        Settings.from_environ({name: value})
    # Then no message has it, whatever a library says of it
    for form in forms:
        said = SinkUnavailableError(f'it says ("{form}") of {form}, and {form}')
        assert str(said) == 'it says ("***") of ***, and ***'


@pytest.mark.parametrize("name", ["DATABASE_URL", "EVENT_LOG_URL", "KAFKA_PASSWORD", "OPERATOR_PASSWORD"])
@pytest.mark.parametrize(
    "password", ["hunter2:ä@/%? 1", "🙂'hunter2\"\\#&=+", "%01hunter2'/%41é", "日本語@hunter2", "100%hunter2/&"]
)
def test_an_odd_password_is_hidden_in_each_form_that_a_program_gives_it(name: str, password: str) -> None:
    # Given a password with characters that URLs, JSON and Python write in another way
    is_url = name.endswith("_URL")
    value = f"{'postgresql' if name == 'DATABASE_URL' else 'redis'}://u:{quote(password, safe='')}@h/0"
    with contextlib.suppress(SettingsError):
        Settings.from_environ({name: value if is_url else password})
    # Then it is in no message, in whichever form
    forms = {
        password, repr(password)[1:-1], ascii(password)[1:-1], repr(password.encode())[2:-1],
        json.dumps(password)[1:-1], json.dumps(password, ensure_ascii=False)[1:-1],
        quote(password), quote(password, safe=""), quote_plus(password),
    }  # fmt: skip
    assert len(forms) > 2
    for form in forms:
        assert hide_secrets(f'it says ("{form}") of it') == 'it says ("***") of it'


@pytest.mark.parametrize("password", ["sluice", "db", "logs", "abc"])
def test_a_password_that_is_a_name_or_short_does_not_garble_all_messages(password: str) -> None:
    Settings.from_environ({"DATABASE_URL": f"postgresql://sluice:{password}@db:5432/logs"})
    assert hide_secrets(f"the {password} of sluice at db/logs") == f"the {password} of sluice at db/logs"
    assert hide_secrets(f"postgresql://sluice:{password}@db:5432/logs") == "postgresql://sluice:***@db:5432/logs"


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"REDIS_URL": "redis://:sluice@redis:6379/0"}, "run `python -m sluice doctor`; GRANT USAGE ON SCHEMA sluice"),
        ({"KAFKA_PASSWORD": "kafka"}, "kafka+ssl://h:1, Kafka, 3 copies: see docs/kafka.md"),
        ({"KAFKA_PASSWORD": "Kafka"}, "Kafka, 3 copies"),
        ({"REDIS_URL": "redis://:orders@h", "DATABASE_URL": "postgresql://u@db/orders"}, "GRANT … ON DATABASE orders"),
        (
            {"DATABASE_URL": "postgresql://u:cache@db/x", "REDIS_URL": "redis://cache.prod.internal"},
            "no answer of cache",
        ),
        ({"DATABASE_URL": "postgresql://u:cache-1@db/x", "REDIS_URL": "redis://cache-1.prod"}, "cache-1.prod is away"),
        ({"DATABASE_URL": "postgresql://u:a.prod@db/x", "REDIS_URL": "redis://a.prod:1,b:1"}, "a.prod:1 is away"),
        ({"REDIS_URL": "redis://:writer@h", "KAFKA_USER": "writer"}, "user writer may not write"),
        ({"REDIS_URL": "redis://:shop-events@h", "LOG_TOPIC": "shop-events"}, "topic shop-events"),
        ({"REDIS_URL": "redis://:sluice-events@h"}, "topic sluice-events"),
        ({"REDIS_URL": "redis://:12345@h"}, "it has 12345 events"),
    ],
)
def test_a_password_that_is_a_common_word_or_a_name_is_hidden_only_by_its_place(
    environ: dict[str, str], text: str
) -> None:
    # Given settings with a password that many messages have, for another reason
    with contextlib.suppress(SettingsError):
        Settings.from_environ(environ)
    # Then they can be read, and it is hidden in its URL
    assert hide_secrets(text) == text
    for name, value in environ.items():
        password = value if name == "KAFKA_PASSWORD" else value.partition("://")[2].rpartition("@")[0].partition(":")[2]
        if password:
            said = f"redis://u:{password}@h, password={password}"
            assert hide_secrets(said) == "redis://u:***@h, password=***"


@pytest.mark.parametrize("password", ["123456", "sluice1", "not-sluice", "kafka/kafka"])
def test_a_password_that_only_resembles_a_common_word_is_hidden_everywhere(password: str) -> None:
    Settings.from_environ({"KAFKA_PASSWORD": password, "EVENT_LOG_URL": "kafka+ssl://h:1",
                           "KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_USER": "ann"})  # fmt: skip
    assert hide_secrets(f"it says {password} of it") == "it says *** of it"


def test_the_search_for_urls_is_linear() -> None:
    def seconds(text: str) -> float:
        """The least CPU time for it, of five times."""
        found = []
        for _ in range(5):
            begun = time.thread_time()
            hide_secrets(text)
            found.append(time.thread_time() - begun)
        return min(found)

    # Given a word with many beginnings of a URL, and as many in words of their own
    for text in ("://a:x", "://a", "://a:x/"):
        one_word, words = "@" + text * 10_000, "@" + f" {text}" * 10_000
        # Then it takes no longer than they do, by and large
        assert seconds(one_word) < 20 * seconds(words)


def test_a_part_of_a_longer_word_is_no_password() -> None:
    Settings.from_environ({"DATABASE_URL": "postgresql://ann:word@db/x"})
    assert hide_secrets("words, passwords and a word") == "words, passwords and a ***"


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:8080/ by ann@host", "postgresql://sluice@db/x", "a == b", "12:30 ann@host: 5 % lost"]
)
def test_all_else_is_left_as_it_was(text: str) -> None:
    assert hide_secrets(text) == text


@pytest.mark.parametrize("form", LOG_FORMATS)
def test_log_lines_hide_passwords_in_tracebacks_too(form: str) -> None:
    # Given a traceback of a library that quotes what it was given
    stream, logger = io.StringIO(), logging.getLogger("test-secrets")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        logs.configure(level="INFO", form=form, process="test", stream=stream)
        try:
            psycopg2.connect(f"postgresql://sluice:{SECRET}%zz@127.0.0.1:1/x")
        except psycopg2.Error:
            logger.exception("no connection to %s", f"postgresql://sluice:{SECRET}@db/x")
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = handlers
        root.setLevel(level)
    assert SECRET not in stream.getvalue()
    assert "percent-encoded token" in stream.getvalue()


@pytest.mark.parametrize("name", ["database_url", "redis_url", "event_log_url"])
@pytest.mark.parametrize(
    ("password", "why"),
    [
        (f"{SECRET}%zz", "%25"),
        (f"100%{SECRET}", "%25"),
        (f"{SECRET}@x", "%40"),
        (f"x/{SECRET}", "%2F"),
        (f"x?{SECRET}", "%3F"),
        (f"x#{SECRET}", "%23"),
        (f"12?{SECRET}", "%3F"),
        (f"12?{SECRET}=x", "%40"),
        (f"{SECRET}%00", "%00"),
        (f"x {SECRET}", "%20"),
        (f"x\n{SECRET}", "%20"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(name: str, password: str, why: str) -> None:
    scheme = "postgresql" if name == "database_url" else "redis"
    with pytest.raises(SettingsError, match=name.upper()) as refused:
        Settings.from_environ({name.upper(): f"{scheme}://sluice:{password}@host:1234/0"})
    assert why in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["mysql://sluice:hunter2@db/x", "sluice:hunter2@db/x", "postgresql+psycopg2://sluice:hunter2@db/x"]
)
def test_another_kind_of_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL does not begin with postgresql://") as refused:
        Settings(database_url=url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40%25@[::1]:5432/x?sslmode=require",
        "postgresql://u@h1:1,h2:2/x",
        "postgres:///x?host=/run/postgresql&user=a@b",
    ],
)
def test_urls_that_can_be_read_are_taken(url: str) -> None:
    assert Settings(database_url=url).database_url == url


def test_variables_of_other_programs_are_removed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a shell of somebody who works with another database
    for name in [name for name in os.environ if name.startswith(("CELERY_", "PG"))]:
        monkeypatch.delenv(name)
    given = {"PGSSLMODE": "require", "PGOPTIONS": "-c x=1", "PGSERVICE": "other", "PGPASSWORD": SECRET, "CELERY_X": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    # Then one line names them, and they are gone for libpq too; the password stays
    line = ignore_variables_of_others()
    assert line is not None
    assert "CELERY_X, PGOPTIONS, PGSERVICE, PGSSLMODE; settings of PostgreSQL's client belong into DATABASE_URL" in line
    assert [name for name in given if name in os.environ] == ["PGPASSWORD"]
    assert ignore_variables_of_others() is None


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_a_folder_for_metrics_of_another_program_does_not_matter(name: str) -> None:
    # Given the setting with which another program's processes share their metrics
    code = (
        "import prometheus_client, ingest.__main__ as program\n"
        "print(program.ignore_variables_of_others())\n"
        "from pipeline.metrics import IngestMetrics\n"
        "IngestMetrics(prometheus_client.CollectorRegistry())\n"
    )
    environ = {**os.environ, name: "/nonexistent"}
    said = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    # Then it is named, and ours are made in memory
    assert said.returncode == 0, said.stderr
    assert name in said.stdout


def test_a_python_that_removes_texts_is_named() -> None:
    environ = {**os.environ, "PYTHONOPTIMIZE": "2", "RATE_MIN": "x"}
    said = subprocess.run([sys.executable, "-m", "ingest"], env=environ, capture_output=True, text=True, check=False)
    assert "ingest: PYTHONOPTIMIZE=2 removes the texts of messages: unset it" in said.stderr.splitlines()


def test_the_programs_name_them_at_their_start() -> None:
    # Given settings that end each program at its start
    environ = {**os.environ, "PGSSLMODE": "require", "RATE_MIN": "x"}
    for words in (["-m", "ingest"], ["-m", "celery", "-A", "tasks.app", "report"]):
        said = subprocess.run([sys.executable, *words], env=environ, capture_output=True, text=True, check=False)
        assert said.stderr.count("PGSSLMODE") == 1, said.stderr
        assert said.returncode != 0
