"""Protobuf's text form, as far as configurations need it: messages, lists, strings, numbers, names.

A mapping is a message, a list a repeated field, `Name` a value of an enumeration, `None` nothing.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Name(str):
    """A value of an enumeration, which is written without quotes."""

    __slots__ = ()


def text_of(message: Mapping[str, Any]) -> str:
    """Write a message, a field a line."""
    return "\n".join(_lines(message, "")) + "\n"


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for field, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{field} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            elif one is not None:
                yield f"{indent}{field}: {_scalar(one)}"


def _scalar(value: object) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        # JSON's escapes are protobuf's too but for \u, which ASCII names do not need
        return json.dumps(value, ensure_ascii=False)
    raise TypeError(f"{type(value).__name__} has no text form here")
