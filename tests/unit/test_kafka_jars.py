"""Kafka's jars are downloaded once, however many programs need them at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stack.servers import ServerError, kafka, resolve_kafka

JAVA = "#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n"
MAVEN = """#!/bin/sh
echo called >>"$(dirname "$0")/calls"
sleep 0.3  # so long that the other one asks meanwhile
for word in "$@"; do case "$word" in -DoutputDirectory=*) touch "${word#*=}/kafka.jar" ;; esac; done
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Java and a Maven that are none; the jars' folder is not there yet."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("java", JAVA), ("mvn", MAVEN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(kafka, "KAFKA_LIBS", tmp_path / "local" / "kafka")
    return folder


def test_two_that_need_them_download_once(programs: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(lambda _: resolve_kafka(), range(2))
    assert first == second
    assert [path.name for path in first.iterdir()] == ["kafka.jar"]
    assert (programs / "calls").read_text().count("called") == 1


def test_a_download_that_was_killed_or_failed_leaves_nothing_behind(programs: Path) -> None:
    libs = kafka.KAFKA_LIBS
    # Given what a killed download has left
    partial = libs.with_name("kafka.new")
    partial.mkdir(parents=True)
    (partial / "half.jar").touch()
    # When the next one fails, then it says so, and the jars are not taken to be there
    (programs / "mvn").write_text("#!/bin/sh\necho no network\nexit 1\n")
    with pytest.raises(ServerError, match="no network"):
        resolve_kafka()
    assert not libs.exists()
    # And the one after that succeeds
    (programs / "mvn").write_text(MAVEN)
    assert [path.name for path in resolve_kafka().iterdir()] == ["kafka.jar"]
