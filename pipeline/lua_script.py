"""Lua scripts that run on Redis, each in a file beside the adapter that runs it."""

from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LuaScript:
    """A Lua script, and its SHA-1 hash. A server that has cached the script finds it by the hash."""

    text: str
    sha: str
    only_reads: bool  # then its caller needs no right to write its keys


def read_script(folder: Path, name: str, *libraries: str) -> LuaScript:
    """Read `name`.lua from a folder; insert each `library`.lua after its first line (`#!lua …`)."""
    text = (folder / f"{name}.lua").read_text(encoding="utf-8")
    first_line, rest = text.split("\n", 1)
    parts = [(folder / f"{library}.lua").read_text(encoding="utf-8") for library in libraries]
    text = "".join([first_line, "\n", *parts, rest])
    return LuaScript(text, sha1(text.encode(), usedforsecurity=False).hexdigest(), "no-writes" in first_line)
