"""Text for users is plain English: none of these phrases is in a help text, a message, an alert or the live page."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# Each with the words that say it plainly.
PHRASES = {
    r"whoever": "the operator, the client",
    r"(?<!sent )by hand": "by an operator, manually",
    r"mend(s|ed|ing)?": "fix",
    r"the story": "the scenario, what happened",
    r"what (is|was|stands|comes)\b[^.;:]{0,60}, (is|was)": "the noun itself",
    r"in vain": "timed out, without success",
    r"stands? (twice|still|in the way)": "is repeated, does not move",
    r"nobody (says|has|had|drains|expected|stored|knows|can be asked)": "passive voice, or the actor",
    r"somebody (must|resumes|has|had|holds|paused|set)": "an operator",
    r"(makes?|making) no sense": "is invalid",
    r"(was|is|been) told": "the component received, knows",
    r"goes by (the )?(last|what)": "uses",
    r"takes (nothing|what)": "accepts, stores",
    r"anew": "again, or the verb with re-",
    r"(threw|throws?|thrown) away": "dropped",
    r"can.t be had": "can't listen, is missing",
    r"not taken": "not supported, not accepted",
    r"what there (is|was)": "the noun itself",
    r"what came of": "the result of",
    r"kept over": "survives",
}
FORBIDDEN = re.compile(r"\b(?:" + "|".join(PHRASES) + r")\b", re.IGNORECASE)
# Calls whose text is for users: errors, log lines, arguments, alarms, descriptions of settings and metrics.
CALLS = re.compile(
    r"(Error|Problem|Alarm|Panel|Declared|setting|_usage|add_argument|add_parser|ArgumentParser"
    r"|debug|info|warning|error|exception|critical|print|echo|write)$"
)
COMMANDS = re.compile(r"(inspect_command|control_command)$")
PROGRAMS = ("sluice", "ingest", "pipeline", "tasks", "stack", "monitoring", "checks", "clients")


def _name(node: ast.expr) -> str:
    """The last name of what is called."""
    function = node.func if isinstance(node, ast.Call) else node
    return str(getattr(function, "attr", "") or getattr(function, "id", ""))


def _strings(node: ast.AST) -> Iterator[str]:
    """The text of every literal below a node; of an f-string with … for its values."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


def texts_of_python(source: str, *, is_errors: bool = False) -> Iterator[str]:
    """Messages, help texts and default messages in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and CALLS.search(_name(node)):
            yield from _strings(node)
        elif isinstance(node, ast.Return) and node.value is not None:
            yield from _strings(node.value)
        elif isinstance(node, ast.FunctionDef) and any(COMMANDS.search(_name(one)) for one in node.decorator_list):
            yield ast.get_docstring(node) or ""
        elif is_errors and isinstance(node, ast.ClassDef):
            yield ast.get_docstring(node) or ""  # the default message


def _texts_of_yaml(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, list | dict):
        for one in part.values() if isinstance(part, dict) else part:
            yield from _texts_of_yaml(one)


def texts_of(path: Path) -> Iterator[str]:
    """The text in a file that users may see."""
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".py":
            yield from texts_of_python(text, is_errors=path.name == "errors.py")
        case ".yml" | ".yaml":
            yield from _texts_of_yaml(yaml.safe_load(text))
        case _:
            # Of a script or a page: all but comments, which only developers read.
            yield re.sub(r"^\s*//.*$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)


FILES = [
    *(path for program in PROGRAMS for path in sorted((ROOT / program).rglob("*.py"))),
    *sorted((ROOT / "ingest").rglob("assets/*.js")),
    *sorted((ROOT / "ingest").rglob("assets/*.html")),
    ROOT / "ingest" / "openapi" / "openapi.yaml",
    *sorted((ROOT / "monitoring" / "rules").glob("*.yml")),
]


def test_text_for_users_has_none_of_the_phrases() -> None:
    assert len(FILES) > 100
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r} in {' '.join(text.split())[:160]!r}"
        for path in FILES
        for text in texts_of(path)
        for match in FORBIDDEN.finditer(" ".join(text.split()))
    ]
    assert found == [], "\n".join(["see PHRASES for plain words:", *found])


@pytest.mark.parametrize(
    "source",
    [
        'raise StartError(f"{name} was mended by {who}")',
        'logger.warning("waited in " "vain", extra={})',
        'parser.add_argument("--x", help="whoever asks")',
        'x = Problem(1, f"{n} events, paused by hand")',
        'def f() -> str:\n    return "It is kept over a flush."',
        '@control_command()\ndef f():\n    """Go on until somebody resumes it."""',
    ],
)
def test_the_phrases_are_found_where_users_read_them(source: str) -> None:
    assert any(FORBIDDEN.search(text) for text in texts_of_python(source))


def test_comments_and_other_docstrings_are_left_alone() -> None:
    source = 'def f() -> int:\n    """Whoever reads this."""\n    # mended by hand\n    return 1'
    assert not any(FORBIDDEN.search(text) for text in texts_of_python(source))
