"""What of a slide is complete and as it was written, part by part, and the files of each part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import zarr

from mmap_st.errors import StoreError, in_sentences
from mmap_st.extract.store.integrity import chunk_keys
from mmap_st.extract.store.magnification import Magnification
from mmap_st.extract.store.nodes import described, folder_of, read_array, subgroup, subgroups
from mmap_st.extract.store.stored_slide import StoredSlide
from mmap_st.extract.windows import mpp_key

#: Names of a set of prototypes' arrays.
PROTOTYPE_ARRAYS = ("centre", "size", "medoid", "label")
#: Where an encoder's sets of prototypes are.
PROTOTYPES = "prototypes"
#: Added to an array's name while a wider copy of it is being made.
DRAFT = ".draft"


@dataclass
class SoundParts:
    """Of one encoder of one slide: what can be handed on.

    Attributes
    ----------
    group
        The encoder's.
    magnifications
        Complete, and as they were written where that was asked for.
    prototypes
        Sets of them, likewise.
    unfinished
        What is not complete, in words.
    damaged
        Why the others cannot be handed on.
    """

    group: zarr.Group
    magnifications: list[Magnification] = field(default_factory=list)
    prototypes: list[zarr.Group] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def sound_parts(slide: StoredSlide, *, verify: bool) -> tuple[list[SoundParts], str]:
    """What of a slide's encoders can be handed on, and why others cannot; empty where all can.

    Parameters
    ----------
    verify
        Read everything, and compare it with what was written.
    """
    broken: list[str] = []
    found = []
    try:
        names = slide.encoders()
    except StoreError as error:
        broken.append(str(error))
        names = slide.undamaged_encoders()
    for name in names:
        parts = _parts_of(slide, name, verify)
        if parts is not None:
            found.append(parts)
            broken += parts.damaged
    return found, in_sentences(broken) if broken else ""


def _parts_of(slide: StoredSlide, encoder: str, verify: bool) -> SoundParts | None:
    group = slide.encoder_group(encoder)
    if group is None:
        return None
    parts = SoundParts(group)
    try:
        found = slide.magnifications(encoder)
    except StoreError as error:
        parts.damaged.append(str(error))
        found = slide.undamaged(encoder)
    for magnification in found:
        if not magnification.complete:
            parts.unfinished.append(f"{encoder} at {mpp_key(magnification.mpp)} um/px")
            continue
        try:
            if verify:
                magnification.verify()
            parts.magnifications.append(magnification)
        except StoreError as error:
            parts.damaged.append(str(error))
    for one in prototype_sets(group):
        if one.attrs.get("complete") is not True:
            continue
        try:
            if verify:
                verify_prototypes(one)
            parts.prototypes.append(one)
        except StoreError as error:
            parts.damaged.append(str(error))
    return parts


def prototype_sets(encoder: zarr.Group) -> list[zarr.Group]:
    """An encoder's sets of prototypes, complete or not, without those whose description is damaged."""
    sets = subgroup(encoder, PROTOTYPES)
    return [] if sets is None else subgroups(sets, lambda error: None)


def verify_prototypes(group: zarr.Group) -> None:
    """Read a complete set of prototypes, as it was written.

    Raises
    ------
    StoreError
        If something of it is not.
    """
    for name in PROTOTYPE_ARRAYS:
        read_array(group, name)


def files_of(group: zarr.Group) -> Iterator[str]:
    """Keys of all files of a group and its arrays, what describes the group last; some may not be there.

    Groups within it are not looked into, nor is what is no part of the store.
    """
    for name in sorted(folder_of(group).folders_in(group.path)):
        if name.endswith(DRAFT):
            continue
        node = described(group, name)
        if node is not None and node["node_type"] == "array":
            yield from (f"{group.path}/{name}/{key}" for key in chunk_keys(group, name))
            yield f"{group.path}/{name}/zarr.json"
    yield f"{group.path}/zarr.json"
