"""How a setting is read: its value from text, and a secret from a file."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_type_hints

from pipeline.errors import SettingsError
from pipeline.secrets import know_names, know_secret, know_url
from pipeline.settings.field import Declared

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_KIND_WORDS: Final[dict[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "yes or no",
    str: "text",
}


def values_in(environ: Mapping[str, str], declared: type[Declared]) -> dict[str, Any]:
    """The value of each field of `declared` that the environment sets; a variable that is empty sets none.

    Keeps secrets out of all messages from now on. Raises SettingsError, which names every variable without a value of
    its field's type.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    kinds = get_type_hints(declared)
    for field in dataclasses.fields(declared):
        name, kind = field.name, kinds[field.name]
        text = environ.get(name.upper(), "").strip()
        path = environ.get(f"{name.upper()}_FILE", "").strip() if field.metadata["is_secret"] else ""
        try:
            if path:
                text = _secret_of(path, is_given=bool(text))
            if text and field.metadata["is_secret"]:
                _hide_from_now_on(name, text)
            elif field.metadata["is_name"]:
                know_names(text or str(field.default))
            if text:
                values[name] = _parse(text, kind)
        except _FileError as error:
            problems.append(f"{name.upper()}_FILE={path!r} {error}")
        except ValueError:
            problems.append(f"{name.upper()}={text!r} is not {_KIND_WORDS[kind]}")
    raise_for(problems)
    return values


def raise_for(problems: Sequence[str]) -> None:
    """Raises SettingsError with all problems, if there are any."""
    if problems:
        raise SettingsError("invalid settings: " + "; ".join(problems))


def _hide_from_now_on(name: str, text: str) -> None:
    """Keep the password in a secret setting out of all messages, also if the setting is refused."""
    (know_url if name.endswith("_url") else know_secret)(text)


def _parse(text: str, kind: type) -> Any:
    """A setting's value from its text; raises ValueError if the text is no such value."""
    if kind is bool:
        lowered = text.lower()
        if lowered not in _TRUE | _FALSE:
            raise ValueError(text)
        return lowered in _TRUE
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    return text


class _FileError(Exception):
    """The file of a secret can't be used."""


def _secret_of(path: str, *, is_given: bool) -> str:
    """The secret in a file: its only line. Raises _FileError."""
    if is_given:
        raise _FileError("and the setting without _FILE are both set: leave one of them out")
    return _only_line(path)


def read_secret(path: str) -> str:
    """The secret in a file, without the white space around it. Raises SettingsError."""
    try:
        return _only_line(path)
    except _FileError as error:
        raise SettingsError(f"the file {path!r} {error}") from error


def _only_line(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise _FileError(f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise _FileError("is not UTF-8") from None
    if not text.isprintable():
        raise _FileError("has more than one line, or characters that can't be printed")
    if not text:
        raise _FileError("is empty")
    return text
