"""Encoders that users bring: by a Python file, or by an installed package's entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from mmap_st._moved import shown_deprecations
from mmap_st.errors import EncoderError, first_line
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.spec import CustomModel, EncoderSpec
from mmap_st.extract.store import check_encoder_name
from mmap_st.files import canonical_json
from mmap_st.plugins import (
    code_of,
    code_of_file,
    code_of_point,
    failing_as,
    load_file,
    origin_of,
    package_of,
    split_reference,
)

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
    recipe, so that embeddings of changed code are distinguished; files that it imports are not.

    Raises
    ------
    EncoderError
        If the file or function is missing, fails, or gives no `EncoderSpec`.
    """
    path, function = split_reference(name)
    if not path.is_file():
        raise EncoderError(f"The encoder file {path} does not exist; give FILE.py:FUNCTION.")
    with failing_as(EncoderError, name, "fix it"):
        make = load_file(path, function)
        if not callable(make):
            raise EncoderError(f"{path} has no function {function!r}.")
        spec = make()
    checked = _checked(spec, name, f"{function} {code_of_file(path)}")
    if checked.name in ENCODERS:
        raise EncoderError(f"{name} calls its encoder {checked.name}, a name that is taken; choose another.")
    return checked


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


# Encoders that were registered in this process, by name.
_REGISTERED: dict[str, EncoderSpec] = {}
Made = TypeVar("Made", bound=Callable[[], EncoderSpec] | EncoderSpec)


def register(made: Made) -> Made:
    """Register an encoder in this process: its name can then be given as ``encoder=`` everywhere.

    Decorates a function without arguments that returns an `EncoderSpec`, or is called with an `EncoderSpec`.
    Registering a name again replaces the encoder, as when a cell of a notebook is run again.

    Of a `CustomModel`, the recipe of embeddings holds a hash of the code: of the file, where the function is
    defined in one that can be imported; otherwise of this function and of the one that makes the network.

    Raises
    ------
    EncoderError
        If the name is that of another encoder, or there is no valid `EncoderSpec`.

    Examples
    --------
    >>> import mmap_st as mm
    >>> @mm.encoders.register
    ... def tiny():
    ...     return mm.encoders.EncoderSpec(
    ...         name="tiny",
    ...         model=mm.encoders.TimmModel("test_vit"),
    ...         input_px=160,
    ...         preprocessing=mm.encoders.Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ...         pooling=mm.encoders.Pooling("cls"),
    ...     )
    """
    name = "what is registered" if isinstance(made, EncoderSpec) else f"{made.__module__}.{made.__qualname__}"
    with failing_as(EncoderError, name, "fix it"):
        spec = made if isinstance(made, EncoderSpec) else made()
    model = spec.model if isinstance(spec, EncoderSpec) else None
    network = [model.make] if isinstance(model, CustomModel) else []
    code = ""
    if isinstance(made, EncoderSpec):
        code = code_of(*network)
    else:
        source, code_sha256, _ = origin_of(made)
        code = f"{made.__qualname__} {code_sha256 if source else code_of(made, *network)}"
    checked = _checked(spec, name, code)
    if checked.name in ENCODERS:
        raise EncoderError(f"{checked.name} is the name of a built-in encoder; register yours under another.")
    _REGISTERED[checked.name] = checked
    return made


def registered_encoders() -> Mapping[str, EncoderSpec]:
    """The encoders that were registered in this process, by name."""
    return _REGISTERED


def _installed(point: EntryPoint) -> EncoderSpec:
    name = f"The encoder {point.name} of {package_of(point) or point.value}"
    if point.name in ENCODERS:
        raise EncoderError(f"{name} has a name that is taken; it cannot be used.")
    _check_name(point.name, name)
    with failing_as(EncoderError, name, "fix or uninstall it"):
        with shown_deprecations():
            found = point.load()
        spec = found if isinstance(found, EncoderSpec) else found()
        code = code_of_point(point)
    return replace(_checked(spec, name, f"{point.value} {code}"), name=point.name)


def _checked(spec: object, name: str, code: str) -> EncoderSpec:
    if not isinstance(spec, EncoderSpec):
        raise EncoderError(f"{name} gives {type(spec).__name__}, not an EncoderSpec; see docs/encoders.md.")
    if not isinstance(spec.name, str) or not spec.name.strip():
        raise EncoderError(f"{name} gives its encoder no name; set EncoderSpec(name=...).")
    _check_name(spec.name, name)
    if isinstance(spec.model, CustomModel):
        spec = replace(spec, model=replace(spec.model, code=code))
    try:
        canonical_json(spec.recipe())
    except TypeError as error:
        raise EncoderError(
            f"{name} has values that JSON cannot store ({first_line(error)}); build it in a CustomModel"
            " instead."
        ) from error
    return spec


def _check_name(encoder: str, name: str) -> None:
    try:
        check_encoder_name(encoder)
    except EncoderError as error:
        raise EncoderError(f"{name}: {error}") from error
