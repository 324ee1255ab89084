"""The heads that can be named: built-in, of installed packages, and of users' files."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from mmap_st.errors import HeadError, did_you_mean
from mmap_st.head.interface import HeadMethod
from mmap_st.head.linear import HEST_RIDGE, MEAN, RIDGE
from mmap_st.head.mmap import MMAP
from mmap_st.head.published import BLEEP, EGN, HIST2ST, HISTOGENE, KNN, MLP, ST_NET, TCGN, TRIPLEX
from mmap_st.plugins import code_of_file, code_of_point, failing_as, load_file, package_of, split_reference

# Baselines first, then published methods by their year.
HEADS = {
    method.name: method
    for method in (
        MMAP,
        RIDGE,
        HEST_RIDGE,
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
    """The head of this name: built in, of an installed package, or ``FILE.py:NAME``.

    Raises
    ------
    HeadError
        If there is none; it names those that are near.
    """
    if name in HEADS:
        return HEADS[name]
    if ".py:" in name:
        return method_from_file(name, HEADS)
    installed = installed_heads(frozenset(HEADS))
    if name in installed.methods:
        return installed.methods[name]
    if name in installed.broken:
        raise HeadError(installed.broken[name])
    known = [*HEADS, *installed.methods]
    raise HeadError(
        f"There is no head {name!r}{did_you_mean(name, known)}; the heads are {', '.join(known)}, and"
        " FILE.py:NAME is your own."
    )


ENTRY_POINTS = "mmap_st.heads"


@dataclass(frozen=True)
class Installed:
    """The heads of installed packages, by name, and what is wrong with those that cannot be loaded."""

    methods: dict[str, HeadMethod]
    broken: dict[str, str]


def method_from_file(name: str, taken: Collection[str]) -> HeadMethod:
    """The head that ``FILE.py:NAME`` is.

    Parameters
    ----------
    taken
        Names that it may not have.

    Raises
    ------
    HeadError
        If the file or the name is missing, its code fails, or it is no `HeadMethod`.
    """
    path, attribute = split_reference(name)
    if not path.is_file():
        raise HeadError(f"The head file {path} does not exist; give FILE.py:NAME.")
    with failing_as(HeadError, name, "mend it"):
        found = load_file(path, attribute)
    method = _checked(found, name)
    if method.name in taken:
        raise HeadError(f"{name} calls its head {method.name}, which is another's name; choose another.")
    return replace(method, source=f"{path.resolve()}:{attribute}", code=code_of_file(path))


@cache
def installed_heads(taken: frozenset[str]) -> Installed:
    """Entry points of the group ``mmap_st.heads``; each is a `HeadMethod`, and its name here its own."""
    methods, broken = {}, {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            methods[point.name] = _installed(point, taken)
        except HeadError as error:
            broken[point.name] = str(error)
    return Installed(methods, broken)


def _installed(point: EntryPoint, taken: Collection[str]) -> HeadMethod:
    name = f"The head {point.name} of {package_of(point) or point.value}"
    if point.name in taken:
        raise HeadError(f"{name} has the name of another; it cannot be used.")
    with failing_as(HeadError, name, "mend or uninstall it"):
        found, code = point.load(), code_of_point(point)
    return replace(_checked(found, name), name=point.name, code=code)


def _checked(found: object, name: str) -> HeadMethod:
    if not isinstance(found, HeadMethod):
        raise HeadError(f"{name} is {_kind(found)}, not a HeadMethod; see docs/heads.md.")
    if not is_dataclass(found.settings_type):
        raise HeadError(f"{name} has settings that are no dataclass; see docs/heads.md.")
    if not re.fullmatch(r"[\w-]+", found.name):
        raise HeadError(f"{name} calls its head {found.name!r}; use letters, digits, - and _ alone.")
    return found


def _kind(found: object) -> str:
    return "not defined" if found is None else f"of type {type(found).__name__}"
