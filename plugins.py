"""Code that users bring: what a Python file defines, or an installed package's entry point."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from mmap_st.errors import MmapError, first_line
from mmap_st.files import sha256_of_file


def split_reference(name: str) -> tuple[Path, str]:
    """``FILE.py:NAME`` as the file's path and the name in it."""
    file, _, attribute = name.rpartition(":")
    return Path(file).expanduser(), attribute


def load_file(path: Path, attribute: str) -> Any:
    """What a Python file defines by this name; None where it does not define it."""
    module_name = f"mmap_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(module_name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # As a script sees itself: dataclasses look their module up, and neighbours can be imported.
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        found.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return getattr(module, attribute, None)


def code_of_file(path: Path) -> str:
    """The sha256 of a file's code; files that it imports are not in it."""
    return sha256_of_file(path)


def package_of(point: EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else ""


def code_of_point(point: EntryPoint) -> str:
    """The sha256 of the code that a loaded entry point is defined in, or else its package's version."""
    source = inspect.getsourcefile(sys.modules[point.module])
    return code_of_file(Path(source)) if source else package_of(point)


@contextmanager
def failing_as(error_type: type[MmapError], name: str, advice: str) -> Iterator[None]:
    """Turn whatever a user's code raises into one error of the project."""
    try:
        yield
    except MmapError:
        raise
    except (Exception, SystemExit) as error:
        raise error_type(f"{name} fails ({type(error).__name__}: {first_line(error)}); {advice}.") from error
