"""What the command lines say if the database is not the one that they need: what is wrong, and the command to run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from checks.testbed.database import ask
from pipeline.__main__ import main as pipeline_main
from pipeline.sink.migrate import PostgresSchema, migrate, migrations
from stack.servers import free_port
from support.sinks import sink_settings
from tasks import keys
from tasks.signing import main as signing_main


@pytest.fixture
def shell(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A shell whose DATABASE_URL is a fresh database without the schema; returns the URL."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    return database_url


@pytest.mark.parametrize("words", [["create", "shop"], ["list"], ["revoke", "shop"]], ids=lambda words: words[0])
def test_a_database_without_the_schema_or_with_an_older_one_needs_migrate(
    shell: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for known in ([], [one for one in migrations() if one.name < "0011"]):
        migrate(sink_settings(shell), known)
        assert keys.main(words) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert 'relation "api_keys' in said.err
        assert "or one of an older version: run `python -m pipeline migrate`" in said.err
        assert "LINE 1" not in said.err


@pytest.fixture
def role(shell: str) -> Iterator[str]:
    """The name of a user that does not exist yet."""
    name = f"r{shell.rpartition('_')[2]}"
    yield name
    if ask(shell, "SELECT FROM pg_roles WHERE rolname = %s", (name,)):
        ask(shell, f"DROP OWNED BY {name}")
        ask(shell, f"DROP ROLE {name}")


def test_migrate_of_another_database_than_that_of_the_user_is_refused(
    shell: str, role: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given an owner of one database, and a user of the maintenance database of the same server
    other = f"{shell.rpartition('/')[0]}/postgres"
    monkeypatch.setenv("MIGRATE_DATABASE_URL", shell)
    # When the user exists
    monkeypatch.setenv("DATABASE_URL", other)
    assert pipeline_main(["migrate"]) == 1
    # Then nothing is changed
    assert "DATABASE_URL and MIGRATE_DATABASE_URL name different databases" in capsys.readouterr().err
    assert ask(shell, "SELECT to_regclass('log_events') IS NULL") == [(True,)]
    # When the user is made, it is found afterwards
    monkeypatch.setenv("DATABASE_URL", other.replace("//sluice@", f"//{role}:x@"))
    assert pipeline_main(["migrate"]) == 1
    said = capsys.readouterr()
    assert f"made the role {role}" in said.out
    assert "name different databases" in said.err
    assert "up to date" not in said.out
    # And the same database by another name of its server is the same
    monkeypatch.setenv("DATABASE_URL", shell.replace("127.0.0.1", "localhost").replace("//sluice@", f"//{role}:x@"))
    assert pipeline_main(["migrate"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("the schema is up to date\n")
    assert said.err == ""


def test_a_user_that_cannot_be_asked_is_named_and_stops_nothing(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a URL of the user whose server is not reached from here
    monkeypatch.setenv("MIGRATE_DATABASE_URL", shell)
    monkeypatch.setenv("DATABASE_URL", f"postgresql://sluice@127.0.0.1:{free_port()}/sluice")
    assert pipeline_main(["migrate"]) == 0
    said = capsys.readouterr()
    assert "not checked whether DATABASE_URL names the same database" in said.err
    assert PostgresSchema(sink_settings(shell)).missing() == []


def test_the_keys_of_signed_messages_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    assert signing_main(["list", str(folder)]) == 1
    assert capsys.readouterr().err == (
        f"signing: {folder}/trusted is no folder: `python -m tasks.signing create NAME {folder}` makes it with a key\n"
    )
    assert signing_main(["create", "ann", str(folder)]) == 0
    capsys.readouterr()
    assert signing_main(["create", "ann", str(folder)]) == 1
    assert "ann.key: File exists: no key is overwritten" in capsys.readouterr().err
    (folder / "trusted" / "bad.crt").write_text("no certificate")
    assert signing_main(["list", str(folder)]) == 1
    assert "bad.crt' is no certificate" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        signing_main(["create", "bob", str(folder), "--days", "99999999"])
    assert ended.value.code == 2
