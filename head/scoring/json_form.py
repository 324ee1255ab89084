"""The one place where results become JSON, and JSON becomes results.

A result is a frozen dataclass whose fields are the keys of its JSON object, in the order of the file. Numbers
that are not finite are null in a file and NaN in memory.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints, runtime_checkable

from mmap_st.errors import HeadError, first_line
from mmap_st.files import write_text

#: Metadata of a field that a file does not mention where it has its default.
OMITTED: Mapping[str, object] = types.MappingProxyType({"omitted": True})

T = TypeVar("T")


@runtime_checkable
class HasJsonForm(Protocol):
    """A result whose JSON object is not simply its fields in their order."""

    def json_form(self) -> Mapping[str, object]:
        """Keys and values of the JSON object; the values may be results themselves."""


def as_json(value: object) -> Any:
    """Plain dictionaries, lists and numbers for `json.dumps`; numbers that are not finite become None."""
    if isinstance(value, HasJsonForm):
        return as_json(value.json_form())
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(fields_of(value))
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def fields_of(record: Any, *names: str) -> dict[str, object]:
    """Fields of a dataclass by name (default: all, in their order), less those that are `OMITTED`."""
    by_name = {field.name: field for field in fields(record)}
    values = {name: getattr(record, name) for name in names or by_name}
    return {name: value for name, value in values.items() if not _is_left_out(by_name[name], value)}


def from_json(kind: type[T], content: object) -> T:
    """The result that a JSON object describes.

    Keys that `kind` does not have are ignored, and keys that the object does not have take their default:
    files of older and newer versions can be read.

    Raises
    ------
    TypeError
        If a key without a default is missing, or a value is of another type.
    """
    found: T = _parse(kind, content, kind.__name__)
    return found


def read_result(kind: type[T], path: Path) -> T:
    """Read a result from a JSON file.

    Raises
    ------
    HeadError
        If the file cannot be read, or does not hold such a result.
    """
    content = read_json(path)
    try:
        return from_json(kind, content)
    except TypeError as error:
        raise HeadError(f"{path} is damaged ({first_line(error)}).") from error


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object from a file.

    Raises
    ------
    HeadError
        If the file cannot be read, or does not hold one.
    """
    try:
        content: object = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HeadError(f"{path} cannot be read ({first_line(error)}).") from error
    if not isinstance(content, dict):
        raise HeadError(f"{path} cannot be read (it does not hold a JSON object).")
    return content


def write_json(path: Path, content: object) -> None:
    """Write a result, or other plain content, as readable JSON that is there whole or not at all."""
    write_text(path, json.dumps(as_json(content), indent=2) + "\n")


def _is_left_out(field: Field[Any], value: object) -> bool:
    if not field.metadata.get("omitted"):
        return False
    return value == (field.default_factory() if field.default_factory is not MISSING else field.default)


_hints = cache(get_type_hints)


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`; the types are those that results have."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return value
    if origin is Union or origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (kind,) = [argument for argument in arguments if argument is not type(None)]
        return _parse(kind, value, where)
    if is_dataclass(kind):
        return _parse_record(kind, value, where)
    if origin is tuple:
        _check(value, list, where)
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(
            _parse(k, inner, f"{where}[{i}]") for i, (k, inner) in enumerate(zip(kinds, value, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(value, dict, where)
        return {key: _parse(arguments[1], inner, f"{where}.{key}") for key, inner in value.items()}
    if kind is float:
        # A whole number stays one, so that it is written as it was read.
        return float("nan") if value is None else _check(value, (int, float), where)
    return _check(value, kind, where)


def _parse_record(kind: Any, value: Any, where: str) -> Any:
    _check(value, dict, where)
    if hasattr(kind, "from_json_form"):
        value = kind.from_json_form(value)
    hints = _hints(kind)
    given = {
        field.name: _parse(hints[field.name], value[field.name], f"{where}.{field.name}")
        for field in fields(kind)
        if field.name in value
    }
    return kind(**given)


def _check(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{where} is {value!r:.40}")
    return value
