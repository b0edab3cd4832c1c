"""The parameter `filter_path` of Elasticsearch: which fields an answer has.

It is a list of paths, separated by commas: `errors,items.*.error`. `*` matches any part of a name, and `**` any number
of names. A path that begins with `-` removes fields. A path to an object means everything in it.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Final

FILTER_CHARS_MAX: Final = 1000  # a longer filter is ignored: the answer has all fields then

_NAMES: Final = re.compile(r"[\w*-]+(?:\.[\w*-]+)*", re.ASCII)
_STARS: Final = re.compile(r"\*{3,}")

Path = tuple[str, ...]


@lru_cache(maxsize=64)
def kept_paths(filter_path: str, paths: Sequence[Path]) -> frozenset[Path]:
    """Those of `paths` that a filter keeps."""
    if not filter_path or len(filter_path) > FILTER_CHARS_MAX:
        return frozenset(paths)
    patterns = [pattern.strip() for pattern in filter_path.split(",")]
    including = [_split(one) for one in patterns if one and not one.startswith("-")]
    excluding = [_split(one[1:]) for one in patterns if one.startswith("-")]
    return frozenset(
        path
        for path in paths
        if (not including or any(_matches(one, path) for one in including))
        and not any(_matches(one, path) for one in excluding)
    )


def _split(pattern: str) -> Path:
    """The names of a pattern; empty if it can match no field."""
    if _NAMES.fullmatch(pattern) is None:
        return ()
    names = _STARS.sub("**", pattern).split(".")
    # Two adjacent `**` mean the same as one, and matching them would take long.
    return tuple(name for name, group in groupby(names) for _ in (group if name != "**" else (name,)))


def _matches(pattern: Path, path: Path) -> bool:
    """Whether a pattern matches a path, or an object that has it."""
    if not pattern or not path:
        return False
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return not rest or any(_matches(rest, path[start:]) for start in range(len(path)))
    return _is_like(first, path[0]) and (not rest or _matches(rest, path[1:]))


def _is_like(pattern: str, name: str) -> bool:
    """Whether a name matches a pattern with `*`: the shortest text for each, so that it takes no second try."""
    start, *others = pattern.split("*")
    if not others:
        return name == pattern
    if not name.startswith(start):
        return False
    *middle, end = others
    at = len(start)
    for part in middle:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(name) - at >= len(end) and name.endswith(end)
