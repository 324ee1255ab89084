"""Users' own code: what a Python file defines, an installed package's entry point, a notebook's function."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from mmap_st._moved import shown_deprecations
from mmap_st.errors import MmapError, RequestError, first_line
from mmap_st.files import sha256_of_file


def split_reference(name: str) -> tuple[Path, str]:
    """``FILE.py:NAME`` as the file's path and the name in it."""
    file, _, attribute = name.rpartition(":")
    return Path(file).expanduser(), attribute


class ChangedCodeError(RequestError):
    """A file's code is not the code that was expected; it was not run."""


# How the modules are named that files are run as: no import finds them.
_MODULES = "mmap_user_"
# Files that were run in this process, with the sha256 of their code.
_LOADED: dict[Path, tuple[str, ModuleType]] = {}


def load_file(path: Path, attribute: str, expected: str | None = None) -> Any:
    """Run a Python file and return what it defines by this name; None if it does not define it.

    A file that was run before is run again only if its code has changed. What is run is what was hashed: a
    compiled file in a ``__pycache__`` next to it is not looked at.

    Raises
    ------
    ChangedCodeError
        If the sha256 of its code is not `expected`; nothing is run then.
    """
    source = path.read_bytes()
    code = hashlib.sha256(source).hexdigest()
    if expected is not None and code != expected:
        raise ChangedCodeError(f"the code of {path} is not the code that was expected.")
    before, loaded = _LOADED.get(path.resolve(), ("", None))
    if before == code:
        return getattr(loaded, attribute, None)
    module_name = f"{_MODULES}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(module_name, path)
    assert found is not None
    module = importlib.util.module_from_spec(found)
    # As for a script: dataclasses look up their module, and files next to it can be imported.
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with shown_deprecations():
            exec(compile(source, str(path.resolve()), "exec"), module.__dict__)  # noqa: S102
    finally:
        sys.path.remove(str(path.resolve().parent))
    _LOADED[path.resolve()] = code, module
    return getattr(module, attribute, None)


def pickled_with_code(value: object) -> bytes:
    """Pickle a value for a process of this machine, with the users' code in it that no import finds there."""
    import cloudpickle  # type: ignore[import-untyped]

    for name, module in list(sys.modules.items()):
        if name.startswith(_MODULES):
            cloudpickle.register_pickle_by_value(module)
    return bytes(cloudpickle.dumps(value))


def was_run(path: Path, code: str) -> bool:
    """Whether this process has run a file whose code has this sha256, at the user's request."""
    return _LOADED.get(path.resolve(), ("", None))[0] == code


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


def origin_of(made: Any) -> tuple[str, str, bool]:
    """Where a class or function is from.

    Returns
    -------
    ``FILE.py:NAME`` that loads it again, or nothing where no file does; the sha256 of its code; and whether
    it exists in this process only. What a script defines is defined again in the processes that it starts.
    """
    module = sys.modules.get(made.__module__)
    file = getattr(module, "__file__", None)
    top_level = "." not in made.__qualname__
    if file and file.endswith(".py") and top_level and made.__module__ != "__main__":
        path = Path(file).resolve()
        return f"{path}:{made.__qualname__}", code_of_file(path), False
    return "", code_of(made), not (file and top_level)


def code_of(*made: Any) -> str:
    """The sha256 of the source of classes and functions; of their names where there is no source."""
    digest = hashlib.sha256()
    for part in made:
        try:
            digest.update(inspect.getsource(part).encode())
        except (OSError, TypeError):  # typed at a prompt
            digest.update(f"{part.__module__}.{part.__qualname__}".encode())
    return digest.hexdigest()


@contextmanager
def failing_as(error_type: type[MmapError], name: str, advice: str) -> Iterator[None]:
    """Raise whatever a user's code raises as an error of this package."""
    try:
        yield
    except MmapError:
        raise
    except (Exception, SystemExit) as error:
        raise error_type(f"{name} fails ({type(error).__name__}: {first_line(error)}); {advice}.") from error
