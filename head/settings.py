"""Settings of heads: read from text or plain values, and described by the docstrings of their dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any, TypeAlias, get_type_hints

import numpy as np

from mmap_st.errors import HeadError

SettingValue: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True)
class HeadSetting:
    """One setting of a head.

    Attributes
    ----------
    name
        Its key for ``--set`` and in settings.
    default
        Its value unless one is given; None is written ``auto`` on the command line.
    type
        Its type as it is annotated, such as ``int | None``.
    meaning
        What it does, from the docstring; empty where that does not say.
    """

    name: str
    default: SettingValue
    type: str
    meaning: str


def describe_settings(settings_type: type[Any]) -> list[HeadSetting]:
    """Describe the fields of a dataclass of settings, in their order."""
    kinds, meanings = get_type_hints(settings_type), _meanings(settings_type)
    return [
        HeadSetting(field.name, _default(field), _type_name(kinds[field.name]), meanings.get(field.name, ""))
        for field in dataclasses.fields(settings_type)
    ]


def read_setting(text: str, kind: Any, where: str) -> SettingValue:
    """Read the text of a setting.

    Parameters
    ----------
    text
        ``auto`` and ``none`` are None; a whole number may be written 1e3.
    kind
        Type of the setting.
    where
        Such as ``--set pca=1e3``, for the error.

    Raises
    ------
    HeadError
        If the text does not fit the type.
    """
    options = _options(kind)
    if type(None) in options and text in ("auto", "none", ""):
        return None
    if bool in options and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if int in options and re.fullmatch(r"[+-]?[0-9_]+", text):
        return int(text)
    if int in options or float in options:
        try:
            number = float(text)
        except ValueError:
            pass
        else:
            if np.isfinite(number) and (float in options or number.is_integer()):
                return whole_number(number, kind, where)
    if str in options:
        return text
    raise HeadError(f"{where}: {text!r} is not {_wanted(options)}.")


def whole_number(value: SettingValue, kind: Any, where: str) -> SettingValue:
    """Return a whole number as an int where the type of a setting is int; other values as they are.

    Raises
    ------
    HeadError
        If the type is int, and the number has a fraction.
    """
    options = _options(kind)
    if not isinstance(value, float) or int not in options or float in options:
        return value
    if not value.is_integer():
        raise HeadError(f"{where}: {value!r} is not {_wanted(options)}.")
    return int(value)


def _options(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__args__", (kind,))


def _wanted(options: tuple[Any, ...]) -> str:
    auto = ", or auto" if type(None) in options else ""
    if float in options:
        return f"a finite number; give one such as 0.1{auto}"
    if int in options:
        return f"a whole number; give one such as 100{auto}"
    return f"a truth value; give true or false{auto}"


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _default(field: dataclasses.Field[Any]) -> SettingValue:
    if field.default_factory is not dataclasses.MISSING:
        default: SettingValue = field.default_factory()
        return default
    return None if field.default is dataclasses.MISSING else field.default


def _meanings(settings_type: type[Any]) -> dict[str, str]:
    """What the sections of attributes say, in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(settings_type.__mro__):
        lines = inspect.cleandoc(vars(cls).get("__doc__") or "").splitlines()
        if "Attributes" not in lines:
            continue
        names: list[str] = []
        for line in lines[lines.index("Attributes") + 2 :]:
            if line and not line.startswith(" "):
                names = [name.strip() for name in line.partition(":")[0].split(",")]
                found |= dict.fromkeys(names, "")
            elif line:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found
