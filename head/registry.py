"""The heads that can be named: built-in, registered, of installed packages, and of users' files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, get_type_hints, overload

from mmap_st._moved import shown_deprecations
from mmap_st.errors import HeadError, did_you_mean, first_line
from mmap_st.head.interface import HeadMethod
from mmap_st.head.linear import HEST_RIDGE, HEST_RIDGE_TUNED, MEAN, RIDGE
from mmap_st.head.mmap import MMAP
from mmap_st.head.networks import NetworkSettings, network_method
from mmap_st.head.published import BLEEP, EGN, HIST2ST, HISTOGENE, KNN, MLP, ST_NET, TCGN, TRIPLEX
from mmap_st.head.settings import HeadSetting, describe_settings
from mmap_st.plugins import (
    ChangedCodeError,
    code_of_file,
    code_of_point,
    failing_as,
    load_file,
    origin_of,
    package_of,
    split_reference,
    was_run,
)

# Baselines first, then published methods by their year.
HEADS = {
    method.name: method
    for method in (
        MMAP,
        RIDGE,
        HEST_RIDGE,
        HEST_RIDGE_TUNED,
        MEAN,
        KNN,
        ST_NET,
        HISTOGENE,
        HIST2ST,
        EGN,
        BLEEP,
        TCGN,
        MLP,
        TRIPLEX,
    )
}


def head_method(name: str) -> HeadMethod:
    """Return the head of this name.

    Parameters
    ----------
    name
        Of a built-in head, one that was registered in this process, or one of an installed package; or
        ``FILE.py:NAME``.

    Raises
    ------
    HeadError
        If there is no such head; it names similar ones.
    """
    if name in HEADS:
        return HEADS[name]
    if ".py:" in name:
        return method_from_file(name, HEADS)
    if name in _REGISTERED:
        return _REGISTERED[name]
    installed = installed_heads(frozenset(HEADS))
    if name in installed.methods:
        return installed.methods[name]
    if name in installed.broken:
        raise HeadError(installed.broken[name])
    known = [*HEADS, *_REGISTERED, *installed.methods]
    raise HeadError(
        f"There is no head {name!r}{did_you_mean(name, known)}; the heads are {', '.join(known)}. Your own"
        " head is FILE.py:NAME, or has to be registered in this process."
    )


def recorded_head(
    name: str, code: str, given: str | None = None, *, allow_changed_code: bool = False
) -> HeadMethod:
    """Return the head that a run names; nothing that a run names is executed.

    Parameters
    ----------
    name, code
        What the run records: the head's name or ``FILE.py:NAME``, and the sha256 of its code.
    given
        ``FILE.py:NAME`` of the user, who trusts this file. None: a built-in head, one of an installed
        package, or one whose code this process has run before.
    allow_changed_code
        Whether the code of `given` may be other than that which the run records.

    Raises
    ------
    HeadError
        If the head is code of a file and none is given, or another code.
    """
    if name in HEADS:
        if given is not None:
            raise HeadError(f"--head-code {given}: {name} is a built-in head; leave it out.")
        return HEADS[name]
    if given is not None:
        path, _ = split_reference(given)
        if ".py:" not in given or not path.is_file():
            raise HeadError(f"--head-code {given}: there is no such file; give FILE.py:NAME.")
        try:
            return method_from_file(given, HEADS, None if allow_changed_code else code)
        except ChangedCodeError as error:
            raise HeadError(
                f"--head-code {given}: the head {name} was trained with other code than this; give the file"
                " as it was, or pass --allow-changed-code."
            ) from error
    for method in _REGISTERED.values():
        if name in (method.name, method.source):
            return method
    if ".py:" in name:
        path, _ = split_reference(name)
        if path.is_file() and was_run(path, code):
            with suppress(ChangedCodeError):
                return method_from_file(name, HEADS, code)
        raise HeadError(
            f"it was trained with the head {name}, and code that a run names is not executed: read that file,"
            " then pass --head-code FILE.py:NAME."
        )
    return head_method(name)


def settings_of(head: str | HeadMethod) -> list[HeadSetting]:
    """List the settings of a head, in the order of its dataclass.

    Parameters
    ----------
    head
        Its name, ``FILE.py:NAME``, or the `HeadMethod`.

    Returns
    -------
    The name, default, type and meaning of each setting.

    Raises
    ------
    HeadError
        If there is no such head.

    Examples
    --------
    >>> for setting in settings_of("ridge"):
    ...     print(setting.name, setting.default, setting.type)
    alpha None float | None
    pca None int | None
    rank None int | None
    """
    method = head if isinstance(head, HeadMethod) else head_method(head)
    return describe_settings(method.settings_type)


ENTRY_POINTS = "mmap_st.heads"


@dataclass(frozen=True)
class Installed:
    """The heads of installed packages by name, why each of the others cannot be loaded, and the packages."""

    methods: dict[str, HeadMethod]
    broken: dict[str, str]
    packages: dict[str, str]


def method_from_file(name: str, taken: Collection[str], expected: str | None = None) -> HeadMethod:
    """Load the head ``FILE.py:NAME``: a `HeadMethod`, or what the file registers as a head.

    Parameters
    ----------
    taken
        Names that it may not have.
    expected
        The sha256 that its code must have; None: any.

    Raises
    ------
    HeadError
        If the file or the name is missing, its code fails, or it is not a head.
    ChangedCodeError
        If its code is not what is expected; it is not run.
    """
    path, attribute = split_reference(name)
    if not path.is_file():
        raise HeadError(f"The head file {path} does not exist; give FILE.py:NAME.")
    with failing_as(HeadError, name, "fix it"):
        found = load_file(path, attribute, expected)
    method = _checked(_registered_as(found), name)
    if method.name in taken:
        raise HeadError(f"{name} calls its head {method.name}, which is a built-in head's; rename it.")
    return replace(method, source=f"{path.resolve()}:{attribute}", code=code_of_file(path), local=False)


@cache
def installed_heads(taken: frozenset[str]) -> Installed:
    """Load the entry points of the group ``mmap_st.heads``: heads that have the names of the entry points."""
    methods, broken, packages = {}, {}, {}
    for point in entry_points(group=ENTRY_POINTS):
        packages[point.name] = package_of(point) or point.value
        try:
            methods[point.name] = _installed(point, taken)
        except HeadError as error:
            broken[point.name] = str(error)
    return Installed(methods, broken, packages)


def _installed(point: EntryPoint, taken: Collection[str]) -> HeadMethod:
    name = f"The head {point.name} of {package_of(point) or point.value}"
    if point.name in taken:
        raise HeadError(f"{name} has the name of a built-in head; it cannot be used.")
    with failing_as(HeadError, name, "fix or uninstall it"), shown_deprecations():
        found, code = point.load(), code_of_point(point)
    return replace(_checked(_registered_as(found), name), name=point.name, source="", code=code, local=False)


def _checked(found: object, name: str) -> HeadMethod:
    if not isinstance(found, HeadMethod):
        raise HeadError(f"{name} is {_kind(found)}, not a HeadMethod; see docs/heads.md.")
    if not is_dataclass(found.settings_type):
        raise HeadError(f"the settings of {name} are not a dataclass; see docs/heads.md.")
    if not re.fullmatch(r"[\w-]+", found.name):
        raise HeadError(f"{name} calls its head {found.name!r}; use only letters, digits, - and _.")
    return found


Made = TypeVar("Made")
# Heads that were registered in this process, by name.
_REGISTERED: dict[str, HeadMethod] = {}


def registered_heads() -> list[HeadMethod]:
    """The heads that were registered in this process, in that order."""
    return list(_REGISTERED.values())


# Attribute of a class or function that says what head it was registered as.
_MARK = "_registered_head"


@overload
def register(name: HeadMethod) -> HeadMethod: ...
@overload
def register(
    name: str, settings: type[NetworkSettings] | None = None, **others: Any
) -> Callable[[Made], Made]: ...
def register(name: Any, settings: type[NetworkSettings] | None = None, **others: Any) -> Any:
    """Register a head in this process: its name can then be given as ``head=`` everywhere.

    Decorates the class of a network, a function of (sizes, settings) that returns a network, or is called
    with a `HeadMethod`. Registering a name again replaces the head, as when a cell of a notebook is run
    again. Fits in processes of their own (``jobs``) and later sessions find a head that is defined in an
    importable file by that file. One that is defined in a notebook exists in its process only: give it as
    ``FILE.py:NAME`` there.

    Parameters
    ----------
    name
        What to call the head, or the `HeadMethod`.
    settings
        Its dataclass of settings; None: the annotation of the argument `settings`, or `NetworkSettings`.
    others
        Further attributes of the `HeadMethod`, such as ``tokens=True``.

    Raises
    ------
    HeadError
        If the name is that of a built-in head, or what is decorated cannot be a head.

    Examples
    --------
    >>> import mmap_st as mm
    >>> from torch import nn
    >>> @mm.heads.register("linear")
    ... class Linear(mm.heads.BlockNetwork):
    ...     def __init__(self, sizes, settings):
    ...         super().__init__()
    ...         self.layer = mm.heads.output_layer(sizes.magnifications * sizes.width, sizes.outputs)
    ...
    ...     def prepare_inputs(self, block):
    ...         return {"embedding": mm.heads.tensor(block.embedding).flatten(1)}
    ...
    ...     def forward(self, inputs, rows):
    ...         return self.layer(inputs["embedding"][rows])
    """
    if isinstance(name, HeadMethod):
        _register(name, name.fit)
        return name

    def decorate(made: Made) -> Made:
        if isinstance(made, HeadMethod):
            _register(replace(made, name=name, **others), made.fit)
        elif callable(made):
            kind = settings or _settings_type(name, made)
            method = _register(network_method(name, kind, made, **others), made)
            setattr(made, _MARK, method)
        else:
            raise HeadError(
                f"the head {name} is {_kind(made)}; register a network's class, a function that makes one,"
                " or a HeadMethod."
            )
        return made

    return decorate


def _register(method: HeadMethod, made: Any) -> HeadMethod:
    """Register a head; `made` is the class or function whose code it is."""
    _checked(method, "what is registered")
    if method.name in HEADS:
        raise HeadError(f"{method.name} is the name of a built-in head; register yours under another.")
    source, code, local = origin_of(made)
    if made is method.fit and source:  # the name of the function, not of the head, which is not known
        source, local = "", True
    method = replace(method, source=source, code=code, local=local)
    _REGISTERED[method.name] = method
    return method


def _registered_as(found: object) -> object:
    """The head that a class or function of a file was registered as; anything else as it is."""
    return getattr(found, "__dict__", {}).get(_MARK, found)


def _settings_type(name: str, made: Callable[..., Any]) -> type[NetworkSettings]:
    """The annotation of the argument `settings` of what makes a network."""
    function = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    if "settings" not in getattr(function, "__annotations__", {}):
        return NetworkSettings
    try:
        found = get_type_hints(function)["settings"]
    except NameError as error:
        raise HeadError(
            f"the type of the settings of the head {name} is not defined where it is registered"
            f" ({first_line(error)}); give it as settings=."
        ) from error
    if isinstance(found, type) and issubclass(found, NetworkSettings):
        return found
    if is_dataclass(found):
        raise HeadError(f"the settings of the head {name} are not derived from NetworkSettings; derive them.")
    return NetworkSettings


def _kind(found: object) -> str:
    return "not defined" if found is None else f"of type {type(found).__name__}"
