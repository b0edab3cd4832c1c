"""How a setting is declared: a field of a dataclass, with its explanation and its limits."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol


class Declared(Protocol):
    """A dataclass of settings."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


def setting(
    default: Any,
    why: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    when: str = "",
    is_secret: bool = False,
    is_name: bool = False,
) -> Any:
    """A field with its explanation, inclusive limits or allowed words, and when to change it.

    `unit`: only if the field's name does not end with it. A secret may also be in a file, which NAME_FILE names. It is
    left out of `repr`. `is_name`: messages have this text, so a password that is the same is hidden only by its
    position.
    """
    return dataclasses.field(
        default=default,
        repr=not is_secret,
        metadata={
            "why": why,
            "unit": unit,
            "low": low,
            "high": high,
            "choices": choices,
            "when": when,
            "is_secret": is_secret,
            "is_name": is_name,
        },
    )


def limit_problems(settings: Declared) -> Iterator[str]:
    """Values outside their own limits; NaN is outside any limits."""
    for field in dataclasses.fields(settings):
        low, high, choices = field.metadata["low"], field.metadata["high"], field.metadata["choices"]
        value = getattr(settings, field.name)
        if choices is not None and value not in choices:
            yield f"{field.name.upper()}={value!r} is none of {', '.join(choices)}"
        if low is not None and not low <= value <= high:
            yield f"{field.name.upper()}={value} is not between {low} and {high}"
