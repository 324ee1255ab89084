"""Encoders that users bring: by a Python file, or by an installed package's entry point."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mmap_st.errors import EncoderError
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.models import CustomModel
from mmap_st.extract.encoders.spec import EncoderSpec

ENTRY_POINTS = "mmap_st.encoders"


def spec_from_file(name: str) -> EncoderSpec:
    """The spec that ``FILE.py:FUNCTION`` gives: the function is called without arguments.

    In a store it has the name that the spec says. The file's sha256 is in the recipe, so that embeddings of
    changed code are told apart.

    Raises
    ------
    EncoderError
        If the file or function is missing, fails, or gives no `EncoderSpec`.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise EncoderError(f"The encoder file {path} does not exist; give FILE.py:FUNCTION.")
    found = importlib.util.spec_from_file_location(f"mmap_encoder_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        make = getattr(module, function)
        spec = make()
    except Exception as error:  # it is the user's own code, and fails in its own ways
        raise EncoderError(f"{name} fails ({type(error).__name__}: {error}); mend it.") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    checked = _checked(spec, name, digest)
    if checked.name in ENCODERS:
        raise EncoderError(
            f"{name} calls its encoder {checked.name}, which is another's name; choose another."
        )
    return checked


@cache
def installed_encoders() -> dict[str, EncoderSpec]:
    """The encoders of installed packages, by name: entry points of the group ``mmap_st.encoders``.

    Each is an `EncoderSpec`, or a function that gives one; its name here is the entry point's.

    Raises
    ------
    EncoderError
        If one cannot be loaded.
    """
    return {point.name: _installed(point) for point in entry_points(group=ENTRY_POINTS)}


def _installed(point: EntryPoint) -> EncoderSpec:
    package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    try:
        found = point.load()
        spec = found if isinstance(found, EncoderSpec) else found()
    except Exception as error:
        raise EncoderError(
            f"The encoder {point.name} of {package} cannot be loaded ({type(error).__name__}: {error});"
            " mend or"
            " uninstall it."
        ) from error
    return replace(_checked(spec, point.name, package), name=point.name)


def _checked(spec: object, name: str, code: str) -> EncoderSpec:
    if not isinstance(spec, EncoderSpec):
        raise EncoderError(f"{name} gives {type(spec).__name__}, not an EncoderSpec; see docs/encoders.md.")
    if isinstance(spec.model, CustomModel):
        return replace(spec, model=replace(spec.model, code=code))
    return spec
