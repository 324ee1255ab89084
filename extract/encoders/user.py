"""Encoders that users bring: by a Python file, or by an installed package's entry point."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mmap_st.errors import EncoderError, MmapError, first_line
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.models import CustomModel
from mmap_st.extract.encoders.spec import EncoderSpec
from mmap_st.extract.recipe_json import canonical_json

ENTRY_POINTS = "mmap_st.encoders"


@dataclass(frozen=True)
class Installed:
    """The encoders of installed packages.

    Attributes
    ----------
    specs
        By name.
    broken
        What is wrong with those that cannot be loaded, by name.
    """

    specs: dict[str, EncoderSpec]
    broken: dict[str, str]


def spec_from_file(name: str) -> EncoderSpec:
    """The spec that ``FILE.py:FUNCTION`` gives: the function is called without arguments.

    In a store it has the name that the spec says. The function's name and the file's sha256 are in the
    recipe, so that embeddings of changed code are told apart; files that it imports are not.

    Raises
    ------
    EncoderError
        If the file or function is missing, fails, or gives no `EncoderSpec`.
    """
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise EncoderError(f"The encoder file {path} does not exist; give FILE.py:FUNCTION.")
    with _told(name, "mend it"):
        spec = _function_of(path, function)()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    checked = _checked(spec, name, f"{function} {digest}")
    if checked.name in ENCODERS:
        raise EncoderError(
            f"{name} calls its encoder {checked.name}, which is another's name; choose another."
        )
    return checked


def _function_of(path: Path, function: str) -> Any:
    module_name = f"mmap_encoder_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
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
    if not callable(getattr(module, function, None)):
        raise EncoderError(f"{path} has no function {function!r}.")
    return getattr(module, function)


@cache
def installed_encoders() -> Installed:
    """The encoders of installed packages: entry points of the group ``mmap_st.encoders``.

    Each is an `EncoderSpec`, or a function that gives one; its name here is the entry point's.
    """
    specs, broken = {}, {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            specs[point.name] = _installed(point)
        except EncoderError as error:
            broken[point.name] = str(error)
    return Installed(specs, broken)


def _installed(point: EntryPoint) -> EncoderSpec:
    package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else ""
    name = f"The encoder {point.name} of {package or point.value}"
    if point.name in ENCODERS:
        raise EncoderError(f"{name} has the name of another; it cannot be used.")
    with _told(name, "mend or uninstall it"):
        found = point.load()
        spec = found if isinstance(found, EncoderSpec) else found()
        source = inspect.getsourcefile(sys.modules[point.module])
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else package
    return replace(_checked(spec, name, f"{point.value} {digest}"), name=point.name)


@contextmanager
def _told(name: str, advice: str) -> Iterator[None]:
    """It is the user's own code, and fails in its own ways."""
    try:
        yield
    except MmapError:
        raise
    except (Exception, SystemExit) as error:
        raise EncoderError(
            f"{name} fails ({type(error).__name__}: {first_line(error)}); {advice}."
        ) from error


def _checked(spec: object, name: str, code: str) -> EncoderSpec:
    if not isinstance(spec, EncoderSpec):
        raise EncoderError(f"{name} gives {type(spec).__name__}, not an EncoderSpec; see docs/encoders.md.")
    if not isinstance(spec.name, str) or not spec.name.strip():
        raise EncoderError(f"{name} gives its encoder no name; say EncoderSpec(name=...).")
    if isinstance(spec.model, CustomModel):
        spec = replace(spec, model=replace(spec.model, code=code))
    try:
        canonical_json(spec.recipe())
    except TypeError as error:
        raise EncoderError(
            f"{name} has what cannot be written down as JSON ({error}); build it in a CustomModel instead."
        ) from error
    return spec
