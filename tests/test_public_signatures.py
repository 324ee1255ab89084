"""What a package gives to others has a type that says what it holds."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("data", "extract", "prototypes", "head", "report", "workflows", "commands")
STUBS = sorted(
    [ROOT / "__init__.pyi", *(p for folder in LAYERS for p in (ROOT / folder).rglob("__init__.pyi"))]
)


def names_given(stub: Path) -> list[str]:
    return [
        alias.name
        for node in ast.parse(stub.read_text("utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def holds_anything(hint: object) -> bool:
    """Whether a type is, or contains, a mapping from text to anything."""
    arguments = get_args(hint)
    origin = get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[-1:] == (Any,):
        return True
    return any(holds_anything(argument) for argument in arguments)


def signatures(name: str, given: object) -> dict[str, object]:
    """Every annotated callable and attribute that a name stands for."""
    if inspect.isclass(given):
        methods = {
            f"{name}.{key}": getattr(value, "fget", None) or getattr(value, "__func__", value)
            for key, value in vars(given).items()
            if not key.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
        }
        return {name: given, **methods}
    return {name: given} if inspect.isroutine(given) else {}


def vague(package: str, name: str) -> list[str]:
    module = import_module(f"mmap_st.{package}" if package else "mmap_st")
    found = []
    for where, given in signatures(name, getattr(module, name)).items():
        if not (inspect.isclass(given) or inspect.isfunction(given)):
            continue
        try:
            hints = get_type_hints(given)
        except NameError:  # a type that is imported for checkers alone
            hints = dict(inspect.get_annotations(given))
            hints = {key: _textual(hint) for key, hint in hints.items()}
        if any(holds_anything(hint) for key, hint in hints.items() if not key.startswith("_")):
            found.append(f"{package or 'mmap_st'}.{where}")
    return found


def _textual(hint: object) -> object:
    return dict[str, Any] if "[str, Any]" in str(hint) else hint


@pytest.mark.parametrize("stub", STUBS, ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_no_public_signature_has_a_dictionary_of_anything(stub: Path) -> None:
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    if package == "commands":
        return  # it gives modules
    found = {where for name in names_given(stub) for where in vague(package, name)}
    assert not found


def test_the_check_sees_what_it_should() -> None:
    assert holds_anything(dict[str, Any])
    assert holds_anything(list[Mapping[str, Any]] | None)
    assert not holds_anything(dict[str, object])
    assert not holds_anything(Mapping[str, float])
