"""Finding the files of a layout, and matching the rows of its spot table to those of its count table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmap_st.data.spots import Spots, some
from mmap_st.errors import CohortError, SpotsError

#: Suffixes of images that the program can open.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".btf", ".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs",
    ".svslide", ".bif", ".czi", ".dcm",
)  # fmt: skip


def without_suffix(path: Path, suffixes: Sequence[str]) -> str | None:
    """The file's name without its suffix; None for a folder, a hidden file or another suffix."""
    name = path.name
    if name.startswith(".") or not path.is_file():
        return None
    suffix = max((s for s in suffixes if name.lower().endswith(s)), key=len, default=None)
    return None if suffix is None else name[: len(name) - len(suffix)]


def find_images(folder: Path) -> dict[str, Path]:
    """Images of a folder, by name without suffix; ``.ome.tif`` is one suffix.

    Raises
    ------
    CohortError
        If two images have the same name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = without_suffix(path, (*IMAGE_SUFFIXES, ".ome.tif", ".ome.tiff"))
        if name is None:
            continue
        if name in found:
            raise CohortError(
                f"{folder} holds two images of {name} ({some([found[name].name, path.name])}); keep one."
            )
        found[name] = path
    return found


def is_slide_folder(path: Path) -> bool:
    """Whether a folder is one slide: it has DICOM files, or is an OME-Zarr."""
    if not path.is_dir():
        return False
    return path.name.lower().endswith(".ome.zarr") or any(p.suffix.lower() == ".dcm" for p in path.iterdir())


def in_order_of_counts(spots: Spots, wanted: Sequence[str], spot_path: Path, count_path: Path) -> Spots:
    """The spots that have counts, in the order of the count table, with the numbers of those left out.

    Raises
    ------
    SpotsError
        If the two tables share no id.
    """
    row_of = {name: row for row, name in enumerate(spots.ids)}
    ids = tuple(name for name in wanted if name in row_of)
    if not ids:
        raise SpotsError(
            f"no spot id is in both {count_path} (such as {some(wanted)}) and {spot_path}"
            f" (such as {some(spots.ids)}); check that the two tables belong together."
        )
    rows = np.array([row_of[name] for name in ids])
    return replace(
        spots,
        ids=ids,
        xy=spots.xy[rows],
        array=None if spots.array is None else spots.array[rows],
        positions_without_counts=len(spots) - len(ids),
        counts_without_position=len(wanted) - len(ids),
    )
