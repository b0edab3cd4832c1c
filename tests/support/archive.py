"""A look at the files of the event sink `jsonl`, as a reader that follows docs/archive.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def committed_events(folder: Path) -> list[dict[str, Any]]:
    """All committed lines of events, in the order of log, partition, hour and place in the file."""
    return [line for name, line in _lines(folder) if name != "dead-letters.jsonl"]


def committed_letters(folder: Path) -> list[dict[str, Any]]:
    """All committed lines of dead letters."""
    return [line for name, line in _lines(folder) if name == "dead-letters.jsonl"]


def _lines(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for partition in sorted(folder.glob("log-*/partition-*")):
        position = partition / "position.json"
        sizes = json.loads(position.read_bytes())["files"] if position.exists() else {}
        for path in sorted(partition.glob("*.jsonl")):
            content = path.read_bytes()[: sizes.get(path.name)]
            assert not content or content.endswith(b"\n"), path
            for line in content.splitlines():
                yield path.name, json.loads(line)
