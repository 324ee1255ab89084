"""Finding files by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmap_st.data.spots import some
from mmap_st.errors import CohortError

#: Ends of the names of images that are opened somewhere in the program.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".btf", ".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs",
    ".svslide", ".bif", ".czi", ".dcm",
)  # fmt: skip


def without_suffix(path: Path, suffixes: Sequence[str]) -> str | None:
    """The file's name without its ending; None for a folder, a hidden file, or another ending."""
    name = path.name
    if name.startswith(".") or not path.is_file():
        return None
    ending = max((s for s in suffixes if name.lower().endswith(s)), key=len, default=None)
    return None if ending is None else name[: len(name) - len(ending)]


def find_images(folder: Path) -> dict[str, Path]:
    """Images of a folder, by name without ending; OME's double ending counts as one.

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
    """Whether a path is a folder that is one slide: of DICOM files, or an OME-Zarr."""
    if not path.is_dir():
        return False
    return path.name.lower().endswith(".ome.zarr") or any(p.suffix.lower() == ".dcm" for p in path.iterdir())
