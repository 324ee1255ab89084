"""Images alone: slides without spots or counts."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from mmap_st.data.cohort import CohortSlide, LocalSlide
from mmap_st.data.readers.finding import (
    IMAGE_SUFFIXES,
    find_images,
    is_dicom_file,
    is_slide_folder,
    likely_reader,
    without_suffix,
)
from mmap_st.errors import CohortError, SpotsError
from mmap_st.files import absolute


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """One image, or all images of a folder; a folder of DICOM files is one slide, and so is an OME-Zarr.

    Raises
    ------
    CohortError
        If there is no image.
    """
    if path.is_file() and without_suffix(path, IMAGE_SUFFIXES) is None and not is_dicom_file(path):
        reader = likely_reader(path)
        hint = "" if reader is None else f" It looks like data for another reader: {reader}:{path}."
        raise CohortError(
            f"{path} does not have the name of an image; the suffixes are {', '.join(IMAGE_SUFFIXES)}.{hint}"
        )
    if path.is_file():
        found = {without_suffix(path, (*IMAGE_SUFFIXES, ".ome.tif", ".ome.tiff")) or path.stem: path}
    elif is_slide_folder(path):
        found = {_folder_name(absolute(path)): path}
    else:
        found = find_images(path)
        folders = {_folder_name(p): p for p in sorted(path.iterdir()) if is_slide_folder(p)}
        found |= {name: folder for name, folder in folders.items() if name not in found}
    if not found:
        reader = likely_reader(path)
        hint = (
            "" if reader in (None, "images") else f" It looks like data for another reader: {reader}:{path}."
        )
        raise CohortError(f"{path} holds no image; the suffixes are {', '.join(IMAGE_SUFFIXES)}.{hint}")
    return tuple(CohortSlide(name, image=image) for name, image in sorted(found.items()))


def _folder_name(folder: Path) -> str:
    return folder.name.removesuffix(".zarr").removesuffix(".ome")


def read_spots(slide: LocalSlide) -> NoReturn:
    """Images have no spots."""
    raise SpotsError(
        f"{slide.slide} is an image without spots; name the reader of its spot table in the cohort's column"
        " reader."
    )


read_counts = read_spots
