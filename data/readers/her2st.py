"""The layout of the public her2st repository (almaan/her2st; Andersson et al. 2021): legacy ST.

A section's name is its patient's letter and a number (``B4``). Below the repository or its folder ``data``:
``ST-cnts/B4.tsv[.gz]``, ``ST-spotfiles/B4_selection.tsv``, ``ST-imgs/B/B4/*.jpg`` and, for some sections,
``ST-pat/lbl/B4_labeled_coordinates.tsv``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.spots import Spots, duplicates, some
from mmap_st.errors import CohortError, CountsError, SpotsError

PITCH_UM = 200.0  # legacy ST: 100 um spots, 200 um centre to centre

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


def read_spots(slide: CohortSlide) -> Spots:
    """Spots in the order of the count table; without one, in that of the spot table."""
    assert slide.spots is not None
    table = _read_positions(slide.spots)
    positions = {f"{x}x{y}": (x, y, px, py) for x, y, px, py in table.iter_rows()}
    if len(positions) < table.height:
        repeated = duplicates([f"{x}x{y}" for x, y, _, _ in table.iter_rows()])
        raise SpotsError(f"{slide.spots} repeats spots: {some(repeated)}; each spot needs one row.")
    wanted = list(positions) if slide.counts is None else _read_ids(slide.counts)
    ids = tuple(name for name in wanted if name in positions)
    if not ids:
        raise SpotsError(
            f"no spot id is in both {slide.counts} (such as {some(wanted)}) and {slide.spots}"
            f" (such as {some(list(positions))}); check that the two tables belong together."
        )
    rows = np.array([positions[name] for name in ids], dtype=np.float64)
    return Spots(
        ids=ids,
        xy=rows[:, 2:],
        array=rows[:, :2],
        pitch_um=PITCH_UM,
        positions_without_counts=len(positions) - len(ids),
        counts_without_position=len(wanted) - len(ids),
    )


def read_counts(slide: CohortSlide) -> Counts:
    """All rows and genes of the count table: a tab-separated table of spots ``XxY`` by genes."""
    assert slide.counts is not None
    try:
        header = pl.read_csv(slide.counts, separator="\t", has_header=False, n_rows=1, infer_schema=False)
        genes = [str(name) for name in header.row(0)[1:]]
        types = [pl.String] + [pl.Float32] * len(genes)
        table = pl.read_csv(
            slide.counts,
            separator="\t",
            has_header=False,
            skip_rows=1,
            schema={f"column_{i}": kind for i, kind in enumerate(types)},
            null_values=["NA", "NaN", "nan", ""],
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CountsError(
            f"{slide.counts} cannot be read as a table of counts: {_first_line(error)}"
        ) from error
    ids = table.to_series(0).fill_null("").to_list()
    values = table.select(pl.exclude("column_0").fill_null(float("nan"))).to_numpy()
    try:
        return make_counts(ids, genes, values)
    except CountsError as error:
        raise CountsError(f"{slide.counts}: {error}") from error


def _read_positions(path: Path) -> pl.DataFrame:
    """Columns x, y (whole), pixel_x, pixel_y of the spots that the file selects."""
    try:
        table = pl.read_csv(path, separator="\t", infer_schema=False)
        needed = ["x", "y", "pixel_x", "pixel_y"]
        missing = [column for column in needed if column not in table.columns]
        if missing:
            raise SpotsError(
                f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}."
            )
        if "selected" in table.columns:
            table = table.filter(pl.col("selected").cast(pl.Float64) == 1)
        whole = [pl.col(c).cast(pl.Float64).round().cast(pl.Int64) for c in needed[:2]]
        return table.select(*whole, *(pl.col(c).cast(pl.Float64) for c in needed[2:])).with_columns(
            pl.col(needed[2:]).fill_null(float("nan"))
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SpotsError(f"{path} cannot be read as a table of spots: {_first_line(error)}") from error


def _read_ids(path: Path) -> list[str]:
    """First column of a count table, without the values."""
    try:
        ids = pl.read_csv(
            path, separator="\t", has_header=False, skip_rows=1, columns=[0], infer_schema=False
        ).to_series(0)
    except pl.exceptions.NoDataError:
        return []
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CountsError(f"{path} cannot be read as a table of counts: {_first_line(error)}") from error
    names = [str(name) for name in ids.fill_null("")]
    repeated = duplicates(names)
    if repeated:
        raise CountsError(f"{path} repeats spots: {some(repeated)}; each spot needs one row.")
    return names


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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
    """The picture in each section's folder ``ST-imgs/B/B4``; a file's own name is of no account."""
    found: dict[str, Path] = {}
    for section in sorted(folder.glob("*/*")) if folder.is_dir() else []:
        if not section.is_dir() or not _SECTION.fullmatch(section.name):
            continue
        pictures = [
            p for p in sorted(section.iterdir()) if p.suffix.lower() in _IMAGES and not p.name.startswith(".")
        ]
        if len(pictures) > 1:
            raise CohortError(
                f"{section} holds {len(pictures)} images ({some([p.name for p in pictures])});"
                " keep the one that the spots were placed on."
            )
        if pictures:
            found[section.name] = pictures[0]
    return found


def _section_order(section: str) -> tuple[str, int]:
    letters = section.rstrip("0123456789")
    return letters, int(section[len(letters) :])
