"""Legacy ST in layouts other than her2st's, recognised by the names of files below a folder.

Counts: ``NAME_stdata.tsv``. Positions: ``spot_data-selection-NAME.tsv`` (cSCC, Ji et al. 2020, GSE144240),
``spots_NAME.csv`` (STNet's breast set, He et al. 2020), ``NAME_selection.tsv``, ``NAME.spots.txt`` or
``NAME_alignment.txt``. Image: ``NAME.jpg`` or ``HE_NAME.jpg``. All tables may be gzipped; a name may have
GEO's accession as a prefix (``GSM4284316_``).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers.finding import IMAGE_SUFFIXES, without_suffix
from mmap_st.data.readers.legacy_st import read_counts, read_spots
from mmap_st.data.tables import TABLE_SUFFIXES
from mmap_st.errors import CohortError

__all__ = ["find_slides", "read_counts", "read_spots"]

_ACCESSION = r"(?:GSM\d+_)?"
_COUNTS = (rf"{_ACCESSION}(.+)_stdata", rf"{_ACCESSION}(.+)_counts?")
_SPOTS = (
    rf"{_ACCESSION}spot_data-selection-(.+)",
    rf"{_ACCESSION}spots_(.+)",
    rf"{_ACCESSION}(.+)_selection",
    rf"{_ACCESSION}(.+)[._]spots",
    rf"{_ACCESSION}(.+)_alignment(?:_matrix)?",
)
_IMAGES = (rf"{_ACCESSION}HE_(.+)", rf"{_ACCESSION}(.+?)(?:_HE)?")
# P2_ST_rep1 belongs to P2, BC23209_C1 to BC23209.
_PATIENT = re.compile(r"(.+?)_(?:ST_)?(?:rep\d+|[A-Z]\d+)", re.IGNORECASE)


def find_slides(folder: Path) -> tuple[CohortSlide, ...]:
    """Every section that has a table of counts or of positions, anywhere below the folder.

    Raises
    ------
    CohortError
        If there is none, or two files are the same table of one section.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    counts = _by_name(files, TABLE_SUFFIXES, _COUNTS)
    spots = _by_name(files, TABLE_SUFFIXES, _SPOTS)
    # In STNet's files the image and spots of a section may be called BT123_C1 and its counts BC123_C1.
    spots = _named_as(counts, spots)
    names = sorted({*counts, *spots})
    if not names:
        raise CohortError(
            f"{folder} holds no table of legacy ST: none is named NAME_stdata.tsv, spots_NAME.csv,"
            " spot_data-selection-NAME.tsv, NAME_selection.tsv or NAME_alignment.txt."
        )
    images = _named_as(names, _by_name(files, IMAGE_SUFFIXES, _IMAGES, wanted={*names, *map(_other, names)}))
    compressed = _by_name(
        files, tuple(f"{s}.gz" for s in IMAGE_SUFFIXES), _IMAGES, wanted=set(names) - set(images)
    )
    if compressed:
        path = next(iter(compressed.values()))
        raise CohortError(f"{path} is compressed; decompress the images first (gunzip).")
    return tuple(
        CohortSlide(
            slide=name,
            patient=match[1] if (match := _PATIENT.fullmatch(name)) else None,
            image=images.get(name),
            spots=spots.get(name),
            counts=counts.get(name),
            reader="st",
        )
        for name in names
    )


def _other(name: str) -> str:
    """The same name with STNet's other prefix; unchanged without such a prefix."""
    return re.sub(r"^B[CT](?=\d)", lambda prefix: {"BC": "BT", "BT": "BC"}[prefix[0]], name)


def _named_as(names: Collection[str], files: dict[str, Path]) -> dict[str, Path]:
    """Files by the names that the others have, where they differ only in STNet's prefix."""
    renamed = {name: _other(name) for name in files if name not in names and _other(name) in names}
    return {
        renamed[name] if name in renamed and renamed[name] not in files else name: path
        for name, path in files.items()
    }


def _by_name(
    files: list[Path], suffixes: tuple[str, ...], patterns: tuple[str, ...], wanted: set[str] | None = None
) -> dict[str, Path]:
    """Files whose name matches a pattern (the first that does), by the section's name in it."""
    found: dict[str, Path] = {}
    for path in files:
        stem = without_suffix(path, suffixes)
        matches = (re.fullmatch(pattern, stem) for pattern in patterns if stem is not None)
        name = next((match[1] for match in matches if match and (wanted is None or match[1] in wanted)), None)
        if name is None:
            continue
        if name in found:
            raise CohortError(f"{found[name]} and {path} both belong to section {name}; keep one.")
        found[name] = path
    return found
