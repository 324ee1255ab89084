"""Legacy ST (Ståhl et al. 2016) in layouts other than her2st's, by the names of files below a folder.

Counts, by spots named ``XxY``: ``NAME_stdata.tsv``. Positions: ``spot_data-selection-NAME.tsv`` (cSCC, Ji et
al. 2020, GSE144240), ``spots_NAME.csv`` (STNet's breast set, He et al. 2020), ``NAME_selection.tsv``,
``NAME.spots.txt`` or ``NAME_alignment.txt``. Image: ``NAME.jpg`` or ``HE_NAME.jpg``. All tables may be
gzipped; a name may have GEO's accession as a prefix (``GSM4284316_``). Tables of her2st are read here too.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.cohort import CohortSlide, LocalSlide
from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.readers.finding import IMAGE_SUFFIXES, in_order_of_counts, without_suffix
from mmap_st.data.spots import Spots
from mmap_st.data.tables import (
    TABLE_SUFFIXES,
    duplicates,
    find_column,
    number_column,
    read_header,
    read_names,
    read_table,
    read_wide,
    some,
    text_column,
)
from mmap_st.errors import CohortError, CountsError, SpotsError

PITCH_UM = 200.0  # 100 um spots, 200 um centre to centre
TECHNOLOGY = "legacy ST"

_SPOT_ID = re.compile(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)")


def read_spots(slide: LocalSlide) -> Spots:
    """Spots in the order of the count table; without one, in that of the spot table.

    The spot table has the columns x, y (array), pixel_x, pixel_y and optionally selected; or spot ids
    ``XxY`` and the columns X and Y (pixels); or the nine numbers of an alignment matrix.
    """
    spots, counts = slide.spots, slide.counts
    assert spots is not None
    wanted = None if counts is None else read_count_ids(counts)
    alignment = _read_alignment(spots)
    if alignment is not None:
        if counts is None or wanted is None:
            raise SpotsError(
                f"{spots} is an alignment: it needs the spots of a count table, and the cohort names none."
            )
        table = _aligned(wanted, alignment, counts)
    else:
        table = _read_positions(spots)
    return table if counts is None or wanted is None else in_order_of_counts(table, wanted, spots, counts)


def read_counts(slide: LocalSlide) -> Counts:
    """All rows and genes of the count table; spots are rows, or columns if those have spots' names."""
    assert slide.counts is not None
    path, kind = slide.counts, slide.values or "counts"
    table = read_wide(path, CountsError, lambda header: (0, list(range(1, len(header)))))
    ids, genes, values = table.rows, table.columns, table.values
    if _are_spots(genes) and not _are_spots(ids):
        ids, genes, values = genes, ids, values.T
    try:
        return make_counts(ids, genes, values, kind=kind)
    except CountsError as error:
        raise type(error)(f"{path}: {error}") from error


def read_count_ids(path: Path) -> list[str]:
    """Spot ids of a count table; its values are not read."""
    names = read_names(path, CountsError, lambda header: 0)
    if not _are_spots(names):
        across = list(read_header(path, CountsError).header[1:])
        names = across if _are_spots(across) else names
    repeated = duplicates(names)
    if repeated:
        raise CountsError(f"{path} repeats spots: {some(repeated)}; each spot needs one row.")
    return names


def _are_spots(names: list[str]) -> bool:
    sample = names[:50]
    return bool(sample) and sum(_SPOT_ID.fullmatch(name) is not None for name in sample) > len(sample) / 2


def _read_positions(path: Path) -> Spots:
    table = read_table(path, SpotsError)
    pixel = [find_column(table, [name]) for name in ("pixel_x", "pixel_y")]
    array = [find_column(table, [name]) for name in ("x", "y")]
    if pixel[0] and pixel[1] and array[0] and array[1]:
        selected = find_column(table, ["selected"])
        if selected is not None:
            keep = number_column(table, selected, path, SpotsError) == 1
            table = table.filter(keep)
        place = np.column_stack([number_column(table, c, path, SpotsError) for c in array if c]).round()
        if not np.isfinite(place).all():
            row = int(np.flatnonzero(~np.isfinite(place).all(axis=1))[0])
            raise SpotsError(
                f"{path}, row {row + 1} has no position on the array (x, y); correct or remove it."
            )
        ids = [f"{x:.0f}x{y:.0f}" for x, y in place]
    else:
        # As in STNet's tables: the id first, then X and Y in pixels.
        identity = next((c for c in table.columns if c not in array), None)
        ids = [] if identity is None else text_column(table, identity, path, SpotsError)
        if not (array[0] and array[1] and _are_spots(ids)):
            needed = ("x", "y", "pixel_x", "pixel_y")
            missing = [name for name in needed if find_column(table, [name]) is None]
            raise SpotsError(
                f"{path} is missing the columns {', '.join(missing)}; it has"
                f" {', '.join(table.columns) or 'none'}."
            )
        pixel, place = array, _array_of(ids, path)
    xy = np.column_stack([number_column(table, c, path, SpotsError) for c in pixel if c])
    if duplicates(ids):
        raise SpotsError(f"{path} repeats spots: {some(duplicates(ids))}; each spot needs one row.")
    try:
        return Spots(tuple(ids), xy, place, PITCH_UM, technology=TECHNOLOGY)
    except SpotsError as error:
        raise SpotsError(f"{path}: {error}") from error


def _array_of(ids: list[str], path: Path) -> NDArray[np.float64]:
    matches = [_SPOT_ID.fullmatch(name) for name in ids]
    wrong = [name for name, match in zip(ids, matches, strict=True) if match is None]
    if wrong:
        raise SpotsError(f"{path}: {some(wrong)} are not spot ids, which look like 10x15.")
    return np.array([[float(m[1]), float(m[2])] for m in matches if m], dtype=np.float64).reshape(-1, 2)


def _read_alignment(path: Path) -> NDArray[np.float64] | None:
    """(3, 3) matrix that maps rows (x, y, 1) to pixels, if the file has nine numbers; else None."""
    if path.suffix.lower() != ".txt" or path.stat().st_size > 4096:
        return None
    try:
        numbers = [float(word) for word in path.read_text("utf-8").replace(",", " ").split()]
    except ValueError:
        return None
    if len(numbers) != 9:
        return None
    matrix = np.array(numbers).reshape(3, 3)
    # For column vectors its last row is (0, 0, 1), for row vectors its last column.
    if np.allclose(matrix[2], [0, 0, 1]) and not np.allclose(matrix[:2, 2], 0):
        matrix = matrix.T
    if not np.allclose(matrix[:, 2], [0, 0, 1]) or not np.isfinite(matrix).all():
        raise SpotsError(
            f"{path} is not an affine alignment: neither its last row nor its last column is 0 0 1."
        )
    return matrix


def _aligned(ids: list[str], matrix: NDArray[np.float64], counts: Path) -> Spots:
    place = _array_of(ids, counts)
    xy = (np.column_stack([place, np.ones(len(place))]) @ matrix)[:, :2]
    return Spots(tuple(ids), xy, place, PITCH_UM, technology=TECHNOLOGY, notes=("placed by an alignment",))


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
