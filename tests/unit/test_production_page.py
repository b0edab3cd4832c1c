"""The page of what is promised in production: each row names a test or a command, and each of them is there."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
_MODULES: Final = {"./bench.sh": "checks.bench", "./soak.sh": "checks.soak"}


def rows(page: str) -> list[list[str]]:
    """The cells of each row below a head that begins with "promise"."""
    found: list[list[str]] = []
    is_promise = False
    for line in page.splitlines():
        if not line.startswith("|"):
            is_promise = False
        elif line.startswith("| promise |"):
            is_promise = True
        elif is_promise and line.startswith("| "):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def problem_of(span: str) -> str | None:
    """Why a test or command of the page is none; None if it is one."""
    if span.startswith("tests/"):
        path, _, name = span.partition("::")
        if not (ROOT / path).is_file():
            return f"there is no {path}"
        return f"{path} has no {name}" if name and name not in _tests_of(ROOT / path) else None
    words = span.split()
    if words[0] in _MODULES:
        module, given = _MODULES[words[0]], words[1:]
    elif words[:2] == ["python", "-m"]:
        module, given = words[2], words[3:]
    else:
        return f"neither a test nor a known command: {span}"
    if (source := _source_of(module)) is None:
        return f"there is no {module}"
    # Options and words of a choice; M12, 100 and NAME are none.
    unknown = [word for word in given if re.fullmatch(r"(--)?[a-z][a-z-]*", word) and f'"{word}"' not in source]
    return f"{module} has no {', '.join(unknown)}" if unknown else None


@cache
def _tests_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@cache
def _source_of(module: str) -> str | None:
    """The text of a module, or of all modules of a package that can be run; None if there is none."""
    place = ROOT / module.replace(".", "/")
    if place.with_suffix(".py").is_file():
        return place.with_suffix(".py").read_text(encoding="utf-8")
    if find_spec(module) is None or not (place / "__main__.py").is_file():
        return None
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(place.glob("*.py")))


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_each_promise_is_shown_by_something() -> None:
    found = rows(PAGE)
    assert len(found) > 40
    assert [row[0] for row in found if len(row) != 3 or not spans(row[1])] == []


@pytest.mark.parametrize("span", sorted({span for row in rows(PAGE) for span in spans(row[1])}))
def test_each_test_and_command_of_the_page_is_there(span: str) -> None:
    assert problem_of(span) is None


@pytest.mark.parametrize(
    ("span", "problem"),
    [
        ("tests/unit/test_nothing.py", "there is no tests/unit/test_nothing.py"),
        ("tests/unit/test_cors.py::test_nothing", "tests/unit/test_cors.py has no test_nothing"),
        ("./soak.sh --nothing --faults 3", "checks.soak has no --nothing"),
        ("python -m checks.nothing", "there is no checks.nothing"),
        ("python -m checks.sizing --rat 3", "checks.sizing has no --rat"),
        ("python -m tasks.keys lst", "tasks.keys has no lst"),
        ("./run.py", "neither a test nor a known command: ./run.py"),
    ],
)
def test_what_is_not_there_is_found(span: str, problem: str) -> None:
    assert problem_of(span) == problem
