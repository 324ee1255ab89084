"""The layout of the public her2st repository (almaan/her2st; Andersson et al. 2021): legacy ST.

A section's name is its patient's letter and a number (``B4``). Below the repository or its folder ``data``:
``ST-cnts/B4.tsv[.gz]``, ``ST-spotfiles/B4_selection.tsv``, ``ST-imgs/B/B4/*.jpg`` and, for some sections,
``ST-pat/lbl/B4_labeled_coordinates.tsv``.
"""

from __future__ import annotations

import re
from pathlib import Path

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers.st import read_counts, read_spots
from mmap_st.data.spots import some
from mmap_st.errors import CohortError

__all__ = ["find_slides", "read_counts", "read_spots"]

_COUNTS = re.compile(r"([A-Za-z]+\d+)\.tsv(\.gz)?")
_SPOTS = re.compile(r"([A-Za-z]+\d+)_selection\.tsv(\.gz)?")
_LABELS = re.compile(r"([A-Za-z]+\d+)_labeled_coordinates\.tsv(\.gz)?")
_SECTION = re.compile(r"[A-Za-z]+\d+")
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def find_slides(folder: Path) -> tuple[CohortSlide, ...]:
    """List every section that has a count table, a spot table or an image.

    Raises
    ------
    CohortError
        If `folder` does not have the layout.
    """
    root = folder / "data" if (folder / "data").is_dir() else folder
    counts = _by_section(root / "ST-cnts", _COUNTS)
    spots = _by_section(root / "ST-spotfiles", _SPOTS)
    labels = _by_section(root / "ST-pat" / "lbl", _LABELS)
    images = _images(root / "ST-imgs")
    sections = sorted({*counts, *spots, *images}, key=_section_order)
    if not sections:
        raise CohortError(
            f"{folder} does not have the layout of her2st: no section is in its folders"
            " ST-cnts, ST-spotfiles or ST-imgs."
        )
    return tuple(
        CohortSlide(
            slide=section,
            patient=section.rstrip("0123456789"),
            image=images.get(section),
            spots=spots.get(section),
            counts=counts.get(section),
            reader="her2st",
            labels=labels.get(section),
        )
        for section in sections
    )


def _by_section(folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match:
            found.setdefault(match[1], path)
    return found


def _images(folder: Path) -> dict[str, Path]:
    """The image in each section's folder ``ST-imgs/B/B4``, whatever its name."""
    found: dict[str, Path] = {}
    for section in sorted(folder.glob("*/*")) if folder.is_dir() else []:
        if not section.is_dir() or not _SECTION.fullmatch(section.name):
            continue
        images_there = [
            p for p in sorted(section.iterdir()) if p.suffix.lower() in _IMAGES and not p.name.startswith(".")
        ]
        if len(images_there) > 1:
            raise CohortError(
                f"{section} holds {len(images_there)} images ({some([p.name for p in images_there])});"
                " keep the one that the spots were placed on."
            )
        if images_there:
            found[section.name] = images_there[0]
    return found


def _section_order(section: str) -> tuple[str, int]:
    letters = section.rstrip("0123456789")
    return letters, int(section[len(letters) :])
