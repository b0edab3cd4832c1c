"""The table of Redis' users: it has every script and command of the adapters, and no more than a role needs."""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import acl
from pipeline.__main__ import main
from pipeline.control_store.rights import (
    ALL,
    INGEST,
    OPERATOR,
    USES,
    WORKER,
    KeySpace,
    RedisServer,
    Role,
    Use,
    commands_of,
    rules,
    uses_of,
)  # fmt: skip
from pipeline.control_store.rights_check import probes
from pipeline.errors import SettingsError
from pipeline.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDERS = {RedisServer.CONTROL: ROOT / "pipeline" / "control_store", RedisServer.LOG: ROOT / "pipeline" / "log"}
BOTH = tuple(RedisServer)
PLACE = KeySpace("p:", 3)
NO_COMMANDS = {"BLOCK", "MISCONF"}  # an option and an error of Redis, which stand where a command could


def rules_of(role: Role, *servers: RedisServer) -> list[str]:
    return list(rules(role, servers, PLACE))


@pytest.mark.parametrize("server", BOTH)
def test_every_script_is_in_the_table_with_its_libraries(server: RedisServer) -> None:
    files = {path.stem for path in FOLDERS[server].glob("*.lua")}
    named = {name for use in USES if use.server is server for script in use.scripts for name in script.split()}
    assert named == files


@pytest.mark.parametrize("server", BOTH)
def test_every_command_of_the_adapters_is_in_the_table(server: RedisServer) -> None:
    called = {
        command
        for path in FOLDERS[server].glob("*.py")
        if not path.stem.startswith(("memory", "kafka"))
        for command in _commands_in(path.read_text(encoding="utf-8"))
    } - NO_COMMANDS
    expected = {"INFO", "XREAD", "WAIT", "WAITAOF"} if server is RedisServer.LOG else {"INFO", "HGETALL", "LLEN"}
    assert expected <= called
    known = {command.partition("|")[0] for use in USES if use.server is server for command in commands_of(use)}
    assert called <= known


def _commands_in(source: str) -> Iterator[str]:
    """Words in capitals at the begin of a call's arguments or of a tuple: as commands of Redis are given."""
    for node in ast.walk(ast.parse(source)):
        words = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
        match words:
            case [ast.Constant(value=str(word)), *_] if re.fullmatch(r"[A-Z]{3,}", word):
                yield word


def test_the_commands_of_a_script_are_those_in_its_text() -> None:
    use = Use(server=RedisServer.CONTROL, roles=ALL, what="", scripts=("give_back_lease", "read_offers"))
    assert set(commands_of(use)) == {"EVALSHA", "EVAL", "GET", "DEL", "EVALSHA_RO", "EVAL_RO", "TIME", "HVALS"}


def test_ingest_may_not_change_what_operators_decide() -> None:
    found = rules_of(INGEST, RedisServer.CONTROL)
    for key in ("rate", "pause", "pause:generation", "override", "bands", "accounts", "events", "keys"):
        assert f"%R~p:{key}" in found
        assert f"~p:{key}" not in found
    assert not [rule for rule in found if rule.startswith("&")]
    assert not {"+publish", "+lpush", "+rpush", "+psubscribe"} & set(found)


def test_operators_may_not_read_keys_nor_change_the_control_state() -> None:
    found = rules_of(OPERATOR, *BOTH)
    assert not [rule for rule in found if rule.endswith("~p:keys")]
    written = [rule for rule in found if rule.startswith("~")]
    assert written
    assert all("celery" in rule or "_kombu" in rule for rule in written)
    assert not {"+lpush", "+rpush", "+hset", "+set", "+xadd", "+xread"} & set(rules_of(OPERATOR, RedisServer.LOG))


@pytest.mark.parametrize("role", ALL)
def test_no_role_may_run_what_only_administrators_need(role: Role) -> None:
    found = set(rules_of(role, *BOTH))
    never = "flushall flushdb config keys scan debug monitor shutdown swapdb script function migrate replicaof acl"
    assert not {f"+{command}" for command in never.split()} & found
    assert [rule for rule in found if "@" in rule] == ["-@all"]
    assert not {"~*", "%R~*", "&*", "~p:*", "&p:*"} & found


def test_a_database_is_part_of_the_channels() -> None:
    assert "&p:/3.celery.pidbox" in rules_of(WORKER, RedisServer.CONTROL)


def test_each_right_is_asked_for() -> None:
    for role in ALL:
        asked = {rule for use in uses_of(role, BOTH) for one in probes(use, PLACE) for rule in one.needs}
        missing = set(rules_of(role, *BOTH)[4:]) - asked
        assert not missing


def test_the_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs" / "redis-acl.md").read_text(encoding="utf-8") == acl.page()


# --- The command --------------------------------------------------------------------------------------------------


def test_the_lines_have_hashes_of_passwords_only(tmp_path: Path) -> None:
    for role in ALL:
        (tmp_path / f"sluice-{role.value}").write_text(f"päss {role.value}\n", encoding="utf-8")
    lines = list(acl.user_lines(Settings(), "control", ALL, passwords=tmp_path, is_file=False))
    digest = hashlib.sha256("päss ingest".encode()).hexdigest()
    assert lines[0].startswith(f"ACL SETUSER sluice-ingest on resetpass #{digest} clearselectors resetkeys ")
    assert len(lines) == 3
    assert "päss" not in "".join(lines)
    [line] = acl.user_lines(Settings(), "log", [OPERATOR], passwords=tmp_path, is_file=True)
    assert line.startswith("user sluice-operator on resetpass #")


def test_without_passwords_those_of_the_users_stay() -> None:
    [line] = acl.user_lines(Settings(), "both", [WORKER], passwords=None, is_file=False)
    assert line.startswith("ACL SETUSER sluice-worker clearselectors resetkeys resetchannels -@all ~")
    assert "resetpass" not in line


def test_what_can_give_no_rules_is_refused_by_name(tmp_path: Path) -> None:
    def refused(settings: Settings, server: str, **changed: object) -> str:
        options = {"passwords": None, "is_file": False} | changed
        with pytest.raises(SettingsError) as caught:
            list(acl.user_lines(settings, server, ALL, **options))  # type: ignore[arg-type]
        return str(caught.value)

    assert "KEY_PREFIX" in refused(Settings(key_prefix="a*b:"), "control")
    assert "EVENT_LOG_URL is no Redis" in refused(Settings(event_log_url="kafka://h:9092"), "log")
    assert "--passwords" in refused(Settings(), "control", is_file=True)
    assert "sluice-ingest' can't be read" in refused(Settings(), "control", passwords=tmp_path)


def test_the_command_prints_lines_or_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["acl", "page"]) == 0
    assert capsys.readouterr().out == acl.page()
    assert main(["acl", "log", "ingest"]) == 0
    assert capsys.readouterr().out.startswith("ACL SETUSER sluice-ingest clearselectors")
    with pytest.raises(SystemExit):
        main(["acl", "check"])


def test_a_server_that_can_not_be_asked_is_not_one_without_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REDIS_URL", "EVENT_LOG_URL"):
        monkeypatch.setenv(name, f"redis://{name.lower().replace('_', '-')}.invalid:1/0")
    assert main(["acl", "check", "ingest"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("the rights of the user of REDIS_URL are not checked")
    assert "the event log (Redis) does not answer" in second
