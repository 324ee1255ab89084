"""Images alone: slides that were never sequenced."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers.files import IMAGE_SUFFIXES, find_images, is_dicom_folder, without_suffix
from mmap_st.errors import CohortError, SpotsError


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """An image, or all images of a folder; a folder of DICOM files is one slide.

    Raises
    ------
    CohortError
        If there is no image.
    """
    if path.is_file() and without_suffix(path, IMAGE_SUFFIXES) is None:
        raise CohortError(f"{path} is no image by its name; the endings are {', '.join(IMAGE_SUFFIXES)}.")
    if path.is_file():
        found = {without_suffix(path, (*IMAGE_SUFFIXES, ".ome.tif", ".ome.tiff")) or path.stem: path}
    elif is_dicom_folder(path):
        found = {path.resolve().name: path}
    else:
        found = find_images(path)
        found |= {p.name: p for p in sorted(path.iterdir()) if is_dicom_folder(p) and p.name not in found}
    if not found:
        raise CohortError(f"{path} holds no image; the endings are {', '.join(IMAGE_SUFFIXES)}.")
    return tuple(CohortSlide(name, image=image) for name, image in sorted(found.items()))


def read_spots(slide: CohortSlide) -> NoReturn:
    """Images have no spots."""
    raise SpotsError(f"{slide.slide} is an image alone; the reader that knows its spot table is needed.")


read_counts = read_spots
