"""Groups and arrays of a store, each checked as it is opened: what is damaged is one sentence.

Groups are opened from their ``zarr.json`` directly: Zarr asks an event loop for each of possibly thousands.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.group import GroupMetadata
from zarr.storage import StorePath

from mmap_st.errors import DamagedSlideError, StoreError, first_line, printable
from mmap_st.extract.store.integrity import check_array, damaged, opened, read_checked
from mmap_st.extract.store.storage import StoreFolder, StorePlace
from mmap_st.files import write_text

#: Kind of number and number of axes of each array; "T" is text.
_KINDS = {
    "embedding": ("f", 2),
    "tokens": ("f", 4),
    "valid": ("b", 1),
    "in_bounds": ("f", 1),
    "tissue": ("f", 1),
    "id": ("T", 1),
    "xy": ("f", 2),
}
_DESCRIPTION = "zarr.json"
_LOG = logging.getLogger(__name__)


def folder_of(group: zarr.Group) -> StorePlace:
    """Where a group of a store lies."""
    found = group.store
    if not isinstance(found, StorePlace):
        raise TypeError(f"{printable(str(group.store_path))} was not opened as a feature store")
    return found


def subgroup(group: zarr.Group, key: str) -> zarr.Group | None:
    """A member that is a group, or None.

    Raises
    ------
    StoreError
        If what says what it is cannot be understood.
    """
    return group_at(folder_of(group), f"{group.path}/{key}".strip("/"), described(group, key))


def opened_root(folder: StorePlace) -> zarr.Group | None:
    """The group of a whole store; None where it is an array.

    Raises
    ------
    StoreError
        If what says what it is cannot be understood.
    """
    return group_at(folder, "", _described(folder, ""))


def group_at(folder: StorePlace, path: str, node: dict[str, Any] | None) -> zarr.Group | None:
    """The group that a description is of, at a path; None where it is none."""
    if node is None or node["node_type"] != "group":
        return None
    metadata = GroupMetadata(attributes=dict(node.get("attributes", {})), zarr_format=3)
    return zarr.Group(zarr.AsyncGroup(metadata=metadata, store_path=StorePath(folder, path)))


def subgroups(group: zarr.Group, on_damage: Callable[[StoreError], None] | None = None) -> list[zarr.Group]:
    """The members that are groups, in order of name; each is opened once.

    Parameters
    ----------
    on_damage
        Called for each that cannot be opened. None: the first ends it.

    Raises
    ------
    StoreError
        If what says what a member is cannot be understood, and `on_damage` is None.
    """
    found = []
    for key in sorted(folder_of(group).folders_in(group.path)):
        try:
            inner = subgroup(group, key)
        except StoreError as error:
            if on_damage is None:
                raise
            on_damage(error)
        else:
            if inner is not None:
                found.append(inner)
    return found


def described(group: zarr.Group, key: str) -> dict[str, Any] | None:
    """What a member's ``zarr.json`` says; None where there is none.

    Raises
    ------
    StoreError
        If it is not the description of a group or an array of Zarr format 3.
    """
    return _described(folder_of(group), f"{group.path}/{key}".strip("/"))


def _described(folder: StorePlace, path: str) -> dict[str, Any] | None:
    content = folder.bytes_of(f"{path}/{_DESCRIPTION}".strip("/"))
    if content is None:
        return None
    try:
        node = json.loads(content)
        kind = node["node_type"]
        if node["zarr_format"] != 3 or kind not in ("group", "array"):
            raise ValueError("it describes neither a group nor an array of Zarr format 3")
        if not isinstance(node.get("attributes", {}), dict):
            raise ValueError("its attributes are not a JSON object")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        repaired = ", or run `mmap extract` again, which repairs slides" if path else ""
        advice = f"; restore it from a copy{repaired}." if isinstance(folder, StoreFolder) else folder.advice
        raise DamagedSlideError(
            f"{folder.root / path / _DESCRIPTION} cannot be read ({first_line(error)})",
            advice,
        ) from error
    return dict(node)


def mend(folder: StorePlace, key: str) -> None:
    """Make a group whose ``zarr.json`` cannot be read one without attributes, to be written again.

    What lies in the group is kept. The caller holds the slide's lock.
    """
    path = f"{key}/{_DESCRIPTION}".strip("/")
    content = folder.bytes_of(path)
    if content is None:
        return
    try:
        node = json.loads(content)
        if node["zarr_format"] == 3 and node["node_type"] == "group" and isinstance(node["attributes"], dict):
            return
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    _LOG.warning("%s cannot be read; what it says is written again", printable(str(folder.root / path)))
    assert isinstance(folder, StoreFolder)
    write_text(folder.root / path, json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}))


def shape_in(group: zarr.Group, key: str) -> tuple[int, ...]:
    """Shape of an array, by its description alone.

    Raises
    ------
    StoreError
        If there is no such array, or its shape is not one.
    """
    shape = shape_or_none(group, key)
    if shape is None:
        raise damaged(group, key, "it is missing")
    return shape


def shape_or_none(group: zarr.Group, key: str) -> tuple[int, ...] | None:
    """Shape of an array, by its description alone; None where there is none.

    Raises
    ------
    StoreError
        If it cannot be understood.
    """
    node = described(group, key)
    if node is None or node["node_type"] != "array":
        return None
    shape = node.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise damaged(group, key, f"its shape is {shape!r}")
    return tuple(shape)


def array_in(group: zarr.Group, key: str) -> zarr.Array[Any]:
    """A member that is an array, as it was published.

    Raises
    ------
    StoreError
        If it is missing, or not what was written.
    """
    check_array(group, key)
    found = opened(group, key)
    kind, axes = _KINDS.get(key, (found.dtype.kind, found.ndim))
    if found.dtype.kind != kind or found.ndim != axes or not all(n > 0 for n in found.chunks):
        raise damaged(group, key, f"it has type {found.dtype} and shape {found.shape}")
    return found


def read_array(group: zarr.Group, key: str, rows: slice = slice(None)) -> NDArray[Any]:
    """Rows of an array, as they were written.

    Raises
    ------
    StoreError
        If they cannot be read, or are not what was written.
    """
    array = array_in(group, key)
    found: NDArray[Any] = read_checked(group, key, lambda: np.asarray(array[rows]))
    return found


def text(group: zarr.Group, attribute: str, *, optional: bool = False) -> str | None:
    """An attribute that is text."""
    found = group.attrs.get(attribute)
    if isinstance(found, str) or (optional and found is None):
        return found
    raise wrong_attribute(group, attribute)


def positive(group: zarr.Group, attribute: str) -> float | None:
    """An attribute that is a positive number, or None."""
    found = group.attrs.get(attribute)
    if found is None:
        return None
    if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found) and found > 0:
        return float(found)
    raise wrong_attribute(group, attribute)


def wrong_attribute(group: zarr.Group, attribute: str) -> DamagedSlideError:
    """The error for an attribute that cannot be what was written."""
    found = group.attrs.get(attribute)
    said = f"has {attribute} {str(found)[:60]!r}" if attribute in group.attrs else f"has no {attribute}"
    return damaged(group, _DESCRIPTION, f"it {said}")


def mapping(group: zarr.Group, attribute: str) -> Mapping[str, Any]:
    """An attribute that is a JSON object."""
    found = group.attrs.get(attribute)
    if not isinstance(found, Mapping):
        raise wrong_attribute(group, attribute)
    return found


def numbers(group: zarr.Group, attribute: str) -> Sequence[int]:
    """An attribute that is a list of whole numbers that are not negative."""
    found = group.attrs.get(attribute)
    if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
        raise wrong_attribute(group, attribute)
    return found
