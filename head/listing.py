"""The heads that can be named, and what is known of each."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from mmap_st.errors import HeadError
from mmap_st.head.interface import HeadMethod
from mmap_st.head.registry import HEADS, head_method, installed_heads, registered_heads
from mmap_st.head.settings import HeadSetting, describe_settings
from mmap_st.plugins import failing_as

BUILT_IN = "built in"


@dataclass(frozen=True)
class ListedHead:
    """One head.

    Attributes
    ----------
    name
        For ``--head``.
    summary
        What it does, in one line; empty where its author does not say.
    source
        ``built in``, the package that it is of, its file, or ``this process``.
    tokens
        Whether it needs embeddings with a grid of tokens.
    seeded
        Whether its numbers depend on the seed.
    settings
        Of the head, for ``--set``.
    broken
        Why it cannot be used; empty where it can.
    """

    name: str
    summary: str = ""
    source: str = BUILT_IN
    tokens: bool = False
    seeded: bool = True
    settings: tuple[HeadSetting, ...] = ()
    broken: str = ""


def listed_heads() -> list[ListedHead]:
    """Every head that has a name: built in, registered in this process, or of an installed package."""
    found = [describe_head(method) for method in HEADS.values()]
    found += [describe_head(method) for method in registered_heads()]
    installed = installed_heads(frozenset(HEADS))
    packages = installed.packages
    for name, method in installed.methods.items():
        try:
            found.append(describe_head(method, packages[name]))
        except HeadError as error:
            found.append(ListedHead(name, source=packages[name], broken=str(error)))
    found += [ListedHead(name, source=packages[name], broken=why) for name, why in installed.broken.items()]
    return found


def look_at_head(name: str) -> ListedHead:
    """One head by its name, or ``FILE.py:NAME``.

    Raises
    ------
    HeadError
        If there is no such head, or it cannot be loaded.
    """
    named = {head.name: head for head in listed_heads()} if ".py:" not in name else {}
    if name not in named:
        return describe_head(head_method(name))
    if named[name].broken:
        raise HeadError(named[name].broken)
    return named[name]


def describe_head(method: HeadMethod, package: str = "") -> ListedHead:
    """What a head says of itself; `package` is the installed one that it is of.

    Raises
    ------
    HeadError
        If its settings cannot be described: their types are not defined, or a default fails.
    """
    with failing_as(HeadError, f"What describes the settings of the head {method.name}", "fix it"):
        settings = tuple(describe_settings(method.settings_type))
    own = BUILT_IN if HEADS.get(method.name) is method else "this process"
    return ListedHead(
        method.name,
        method.summary or _first_line(method.settings_type),
        package or method.source or own,
        method.tokens,
        method.seeded,
        settings,
    )


def _first_line(settings_type: type) -> str:
    """What the settings of a head say first, unless Python itself wrote it, as it does for dataclasses."""
    said = inspect.cleandoc(vars(settings_type).get("__doc__") or "").partition("\n")[0]
    return "" if said.startswith(f"{settings_type.__name__}(") else said
