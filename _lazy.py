"""Modules at the root whose names are imported when they are first used, as their stub lists them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach_stub(name: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a module whose .pyi file imports all that it gives.

    `lazy_loader.attach_stub` does the same for packages, whose stubs import relatively.

    Parameters
    ----------
    name, file
        ``__name__`` and ``__file__`` of the module.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text("utf-8"))
    sources = {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = sorted(sources)

    def get(attribute: str) -> Any:
        if attribute not in sources:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        module, original = sources[attribute]
        return getattr(importlib.import_module(module), original)

    return get, lambda: names, names
