"""Space Ranger's ``outs/`` of Visium, versions 1 to 4.

``filtered_feature_bc_matrix.h5`` or the folder of that name; ``spatial/tissue_positions.csv`` (from version
2 on) or ``tissue_positions_list.csv``; ``spatial/scalefactors_json.json``. The matrix's
name may have a prefix, as in downloads. The full-resolution image is not part of ``outs/``: without it, the
image is ``spatial/tissue_hires_image.png`` and positions are scaled by ``tissue_hires_scalef``.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmap_st.data.arrays import hexagonal_positions, square_positions
from mmap_st.data.cohort import CohortSlide, LocalSlide
from mmap_st.data.counts import Counts, check_sparse, make_counts
from mmap_st.data.hdf5 import open_hdf5, read_item
from mmap_st.data.readers.annotated import VISIUM, VISIUM_PITCH_UM, features_of, positive
from mmap_st.data.readers.finding import in_order_of_counts
from mmap_st.data.readers.mtx import read_mtx, read_mtx_barcodes
from mmap_st.data.spots import Spots, number_column, read_table, reading, some, text_column
from mmap_st.errors import CohortError, CountsError, MissingDependencyError, SpotsError, first_line
from mmap_st.files import absolute

MATRIX = "filtered_feature_bc_matrix"
POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
SCALE_FACTORS = "scalefactors_json.json"
HIRES = "tissue_hires_image.png"

_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """One sample, or all samples of a folder: those with ``spatial`` positions in them or in their ``outs``.

    Raises
    ------
    CohortError
        If there is none.
    """
    if not path.is_dir():
        raise CohortError(
            f"{path} is not a folder; visium: needs Space Ranger's outs, or a folder of samples."
        )
    places = [p for p in (path, path / "outs") if _positions(p)]
    if not places:
        inner = sorted(p for p in path.iterdir() if p.is_dir())
        places = [p for folder in inner for p in (folder, folder / "outs") if _positions(p)]
    if not places:
        raise CohortError(
            f"{path} does not have the layout of Space Ranger's outs: there is no spatial/{POSITIONS[1]} or"
            f" spatial/{POSITIONS[2]} in it or in the folders below it."
        )
    return tuple(slide_of(place, sample_name(place), "visium") for place in places)


def slide_of(outs: Path, name: str, reader: str) -> CohortSlide:
    """The cohort's row of one folder of outputs, with the hires image and its scale."""
    spatial = outs / "spatial"
    hires = spatial / HIRES
    scale = positive(read_scale_factors(spatial).get("tissue_hires_scalef")) if hires.is_file() else None
    return CohortSlide(
        slide=name,
        image=hires if scale is not None else None,
        spots=_positions(outs),
        counts=_matrix(outs),
        reader=reader,
        scale=scale,
    )


def sample_name(outs: Path) -> str:
    """The folder's name; that of its parent if the folder is ``outs``."""
    outs = absolute(outs)
    return outs.parent.name if outs.name == "outs" else outs.name


def read_spots(slide: LocalSlide) -> Spots:
    """Spots in the order of the matrix; without one, those under tissue in the order of their table."""
    assert slide.spots is not None
    path = slide.spots
    table = read_table(path, SpotsError, header=not path.name.startswith("tissue_positions_list"))
    if path.name.startswith("tissue_positions_list") and len(table.columns) == len(_COLUMNS):
        table.columns = list(_COLUMNS)
        # Version 1 has no header, but files that were saved again often do.
        table = table.filter((pl.col("barcode") != "barcode") | (pl.int_range(pl.len()) > 0))
    missing = [column for column in _COLUMNS if column not in table.columns]
    if missing:
        raise SpotsError(
            f"{path} is missing the columns {', '.join(missing)}; it has {', '.join(table.columns)}."
        )
    on_tissue = number_column(table, "in_tissue", path, SpotsError) == 1
    barcodes = None if slide.counts is None else read_barcodes(slide.counts)
    beside: set[str] = set()
    if barcodes is None:
        table = table.filter(on_tissue)
    else:  # a matrix that is not filtered has spots beside the tissue too
        beside = set(text_column(table.filter(~on_tissue), "barcode", path, SpotsError)) & set(barcodes)
        barcodes = [name for name in barcodes if name not in beside]
    if not len(table) or (beside and not barcodes):
        raise SpotsError(f"{path} has no spot on tissue (in_tissue 1); give the positions of this sample.")
    row, column, y, x = (number_column(table, c, path, SpotsError).to_numpy() for c in _COLUMNS[2:])
    factors = read_scale_factors(path.parent)
    bin_um = positive(factors.get("bin_size_um"))
    place = np.column_stack([row, column])
    try:
        spots = Spots(
            ids=tuple(text_column(table, "barcode", path, SpotsError)),
            xy=np.column_stack([x, y]),
            array=hexagonal_positions(place) if bin_um is None else square_positions(place),
            pitch_um=bin_um or VISIUM_PITCH_UM,
            technology=VISIUM if bin_um is None else f"Visium HD {bin_um:g} um",
            mpp=None if bin_um is None else positive(factors.get("microns_per_pixel")),
        )
    except SpotsError as error:
        raise SpotsError(f"{path}: {error}") from error
    if not np.isfinite(place).all():
        raise SpotsError(f"{path} has spots without a position on the array (array_row, array_col).")
    if barcodes is None or slide.counts is None:
        return spots
    spots = in_order_of_counts(spots, barcodes, path, slide.counts)
    if not beside:
        return spots
    note = f"spots beside the tissue (in_tissue 0), left out: {len(beside)}"
    return replace(spots, notes=(*spots.notes, note))


def read_counts(slide: LocalSlide) -> Counts:
    """Counts of the genes (other features are left out)."""
    assert slide.counts is not None
    path = slide.counts
    kind = slide.values or "counts"
    try:
        if path.is_dir():
            return read_mtx(path, kind)
        scanpy = _scanpy()
        with reading(path, "a matrix of Space Ranger", CountsError), warnings.catch_warnings():
            # Genes with the same symbol are distinguished by their ids, or added up.
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            # Genes are selected below: scanpy's selection would trust a damaged file's indices.
            with open_hdf5(path) as file:
                adata = read_item(file["/"], lambda _: scanpy.read_10x_h5(path, gex_only=False), CountsError)
            matrix = check_sparse(adata.X)
            features = features_of(adata.var)
            return make_counts(
                [str(name) for name in adata.obs_names],
                features.genes,
                matrix[:, np.flatnonzero(features.columns)],
                gene_ids=features.gene_ids,
                kind=kind,
                notes=(features.note,) if features.note else (),
            )
    except CountsError as error:
        message = str(error)
        raise type(error)(message if str(path) in message else f"{path}: {message}") from error


def read_scale_factors(spatial: Path) -> dict[str, Any]:
    """Contents of ``scalefactors_json.json``; empty without that file."""
    path = spatial / SCALE_FACTORS
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SpotsError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise SpotsError(f"{path} does not hold scale factors; copy it again.")
    return value


def read_barcodes(path: Path) -> list[str]:
    """Names of a matrix's spots; its values are not read.

    Raises
    ------
    CountsError
        If it cannot be read.
    """
    with reading(path, "a matrix of Space Ranger", CountsError):
        if path.is_dir():
            return read_mtx_barcodes(path)
        with open_hdf5(path) as file:
            # Of Cell Ranger 2 it has the name of the genome.
            group = file["matrix"] if "matrix" in file else next(iter(file.values()))
            names = read_item(group["barcodes"], lambda item: item[:], CountsError)
            return [name.decode() for name in names]


def _scanpy() -> Any:
    try:
        import scanpy
    except ImportError as error:
        raise MissingDependencyError(
            "reading Space Ranger's matrices needs scanpy, which is not installed:"
            " pip install 'mmap-st[visium]'."
        ) from error
    return scanpy


def _positions(outs: Path) -> Path | None:
    return next((p for name in POSITIONS if (p := outs / "spatial" / name).is_file()), None)


def _matrix(outs: Path) -> Path | None:
    """The filtered matrix, .h5 before folder; a prefix is allowed if there is only one."""
    for exact in (outs / f"{MATRIX}.h5", outs / MATRIX):
        if exact.exists():
            return exact
    prefixed = sorted(outs.glob(f"*{MATRIX}.h5")) or [
        p for p in sorted(outs.glob(f"*{MATRIX}")) if p.is_dir()
    ]
    if len(prefixed) > 1:
        raise CohortError(f"{outs} holds several matrices ({some([p.name for p in prefixed])}); keep one.")
    return prefixed[0] if prefixed else None
