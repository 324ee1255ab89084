"""AnnData: spots with their positions and a matrix of counts, from .h5ad files or in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.data.arrays import hexagonal_positions, is_hexagonal, square_positions
from mmap_st.data.counts import Counts, check_sparse, is_ensembl, make_counts
from mmap_st.data.spots import Spots, some
from mmap_st.errors import CountsError, SpotsError

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
from pathlib import Path

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.hdf5 import open_hdf5
from mmap_st.data.readers.finding import find_images
from mmap_st.data.spots import reading
from mmap_st.errors import CohortError, SlideError

VISIUM_PITCH_UM = 100.0  # centre to centre; spots are 55 um wide
VISIUM = "Visium"

_OF_SECTIONS = ("library_id", "sample_id", "slide_id")
_GENE_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "ENSEMBL")


@dataclass(frozen=True)
class GeneMatrix:
    """A matrix (spots, genes) of a file, read on demand.

    Attributes
    ----------
    name
        Where it is, such as ``layers['counts']``.
    genes, gene_ids
        Names of its columns, and an Ensembl id for each if the file has them.
    load
        Reads the values.
    """

    name: str
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    load: Callable[[], Any]


@dataclass(frozen=True)
class SpotTable:
    """The parts of an AnnData that are needed here.

    Attributes
    ----------
    source
        The file, for messages.
    obs
        One row per spot; its index holds the ids.
    spatial
        (n, 2) pixels, as the file has them; None if it has none.
    spatial_info
        ``uns["spatial"]``.
    matrices
        In the order in which counts are looked for: X, layers, raw.
    """

    source: str
    obs: DataFrame
    spatial: NDArray[Any] | None
    spatial_info: Mapping[str, Any]
    matrices: tuple[GeneMatrix, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """(n,) ids."""
        return tuple(str(name) for name in self.obs.index)


def table_of(adata: AnnData, source: str) -> SpotTable:
    """The parts of an AnnData that is in memory."""
    matrices = [GeneMatrix("X", *gene_names(adata.var), lambda: adata.X)]
    matrices += [
        GeneMatrix(f"layers['{key}']", *gene_names(adata.var), partial(adata.layers.__getitem__, key))
        for key in count_layers(adata.layers)
    ]
    if adata.raw is not None:
        matrices.append(GeneMatrix("raw", *gene_names(adata.raw.var), lambda: adata.raw.X))
    spatial = adata.obsm.get("spatial")
    info = adata.uns.get("spatial", {})
    return SpotTable(source, adata.obs, spatial, info if isinstance(info, Mapping) else {}, tuple(matrices))


def count_layers(layers: Any) -> list[str]:
    """Names of the layers that are likely to hold counts, likeliest first."""
    return [key for key in ("counts", "raw_counts", "raw", "umi") if key in layers]


def gene_names(var: DataFrame) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Names of genes and, where a column has them, their Ensembl ids; "" for a gene without."""
    names = tuple(str(name) for name in var.index)
    column = next((c for c in _GENE_ID_COLUMNS if c in var.columns), None)
    if column is None:
        return names, None
    # After a concatenation missing ids are NaN; and some columns of this name hold NCBI's numbers.
    ids = tuple(text if is_ensembl(text) else "" for text in (str(v).strip() for v in var[column]))
    return names, ids if any(ids) else None


def spots_of(table: SpotTable) -> Spots:
    """Spots of a table, in its order.

    Raises
    ------
    SpotsError
        If there are no positions, or they belong to several sections.
    """
    if table.spatial is None:
        raise SpotsError(f"{table.source} has no obsm['spatial']; positions in pixels are needed there.")
    xy = np.asarray(table.spatial, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise SpotsError(
            f"{table.source}: obsm['spatial'] has the shape {xy.shape}; it should be (spots, 2)."
        )
    if xy.shape[1] > 2 and np.ptp(xy[:, 2:], axis=0).any():
        raise SpotsError(
            f"{table.source}: obsm['spatial'] has {xy.shape[1]} dimensions; write one file per section,"
            " with x and y."
        )
    libraries = [info for info in table.spatial_info.values() if isinstance(info, Mapping)]
    if len(libraries) > 1:
        raise SpotsError(
            f"{table.source} holds {len(libraries)} sections ({', '.join(map(str, table.spatial_info))});"
            " write one file per section."
        )
    _refuse_several_sections(table)
    technology, pitch_um, mpp = _technology(libraries[0] if libraries else {})
    array = _array(table.obs)
    if array is not None and is_hexagonal(array):
        technology, pitch_um = technology or VISIUM, pitch_um or VISIUM_PITCH_UM
        array = hexagonal_positions(array)
    elif array is not None:
        array = square_positions(array)
    try:
        return Spots(table.ids, xy[:, :2].copy(), array, pitch_um, technology=technology, mpp=mpp)
    except SpotsError as error:
        raise SpotsError(f"{table.source}: {error}") from error


def _refuse_several_sections(table: SpotTable) -> None:
    """Concatenated sections lose ``uns["spatial"]``, but their columns show that they are several."""
    for column in _OF_SECTIONS:
        if column in table.obs.columns and table.obs[column].nunique() > 1:
            names = [str(name) for name in table.obs[column].unique()]
            raise SpotsError(
                f"{table.source} holds {len(names)} sections according to obs[{column!r}] ({some(names)});"
                " write one file per section."
            )
    array = _array(table.obs)
    if array is not None and len(np.unique(array, axis=0)) < len(array):
        raise SpotsError(
            f"{table.source} has several spots at the same array_row and array_col, as in concatenated"
            " sections; write one file per section."
        )


def counts_of(table: SpotTable, kind: str) -> Counts:
    """Counts of a table: the first of X, its count layers and raw that holds whole numbers.

    With `kind` ``lognorm``, X unchanged.

    Raises
    ------
    CountsError
        If none holds counts; or if X does, where log-normalised values are expected.
    """
    try:
        if kind == "lognorm":
            return _lognorm(table)
        for matrix in table.matrices:
            values = _values(matrix, table)
            if first_fraction(values) is None:
                return make_counts(table.ids, matrix.genes, values, gene_ids=matrix.gene_ids)
    except CountsError as error:
        raise CountsError(f"{table.source}: {error}") from error
    seen = ", ".join(matrix.name for matrix in table.matrices)
    example = first_fraction(_values(table.matrices[0], table)) if table.matrices else None
    such = "" if example is None else f" (X has values such as {example:g})"
    raise CountsError(
        f"{table.source} holds no counts: {seen or 'no matrix'} examined{such}, none has whole numbers only;"
        " put raw counts into X, layers['counts'] or raw, or give --values lognorm if log-normalised values"
        " are what you have."
    )


def first_fraction(values: sparse.csr_array) -> float | None:
    """The first finite value that is not a whole number, or None."""
    finite = values.data[np.isfinite(values.data)]
    wrong = finite != np.floor(finite)
    return float(finite[np.argmax(wrong)]) if wrong.any() else None


def _lognorm(table: SpotTable) -> Counts:
    if not table.matrices:
        raise CountsError("there is no X.")
    matrix = table.matrices[0]
    values = _values(matrix, table)
    if first_fraction(values) is None:
        raise CountsError("X holds whole numbers: these are counts; leave out --values lognorm.")
    return make_counts(table.ids, matrix.genes, values, gene_ids=matrix.gene_ids, kind="lognorm")


def _values(matrix: GeneMatrix, table: SpotTable) -> sparse.csr_array:
    loaded = matrix.load()
    if loaded is None:
        raise CountsError(f"{matrix.name} is empty.")
    values = sparse.csr_array(
        check_sparse(loaded) if sparse.issparse(loaded) else np.asarray(loaded), dtype=np.float32
    )
    if values.shape != (len(table.obs), len(matrix.genes)):
        raise CountsError(
            f"{matrix.name} has the shape {values.shape} for {len(table.obs)} spots and {len(matrix.genes)}"
            " genes."
        )
    return values


def _technology(library: Mapping[str, Any]) -> tuple[str | None, float | None, float | None]:
    """Technology, pitch in um and micrometres per pixel, where Space Ranger's metadata has them."""
    factors, notes = library.get("scalefactors", {}), library.get("metadata", {})
    factors = factors if isinstance(factors, Mapping) else {}
    notes = notes if isinstance(notes, Mapping) else {}
    bin_um = positive(factors.get("bin_size_um"))
    if bin_um is not None:
        return f"Visium HD {bin_um:g} um", bin_um, positive(factors.get("microns_per_pixel"))
    if "Spatial" in str(notes.get("chemistry_description", "")):
        return VISIUM, VISIUM_PITCH_UM, None
    return None, None, None


def positive(value: Any) -> float | None:
    """A finite number greater than zero, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _array(obs: DataFrame) -> NDArray[np.float64] | None:
    """(n, 2) row and column on the array; None unless the table has both for every spot."""
    if not {"array_row", "array_col"} <= set(obs.columns):
        return None
    try:
        place = obs[["array_row", "array_col"]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return place if np.isfinite(place).all() else None


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """One file, or all .h5ad files of a folder; the image of each has the same name.

    Raises
    ------
    CohortError
        If there is no such file.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.h5ad"))
    if not files or any(file.suffix.lower() != ".h5ad" for file in files):
        raise CohortError(f"{path} is neither an .h5ad file nor a folder that holds any.")
    images = find_images(files[0].parent)
    return tuple(
        CohortSlide(file.stem, image=images.get(file.stem), spots=file, counts=file, reader="h5ad")
        for file in files
    )


def read_spots(slide: CohortSlide) -> Spots:
    """Spots in the order of ``obs``."""
    assert slide.spots is not None
    with reading(slide.spots, "an AnnData file", SpotsError):
        return spots_of(read_table(slide.spots, SpotsError))


def read_counts(slide: CohortSlide) -> Counts:
    """Counts: X, or ``layers["counts"]`` or ``raw`` if X does not hold counts."""
    assert slide.counts is not None
    with reading(slide.counts, "an AnnData file", CountsError), open_hdf5(slide.counts) as file:
        return counts_of(_table(file, slide.counts), slide.values or "counts")


def read_table(path: Path, error: type[SlideError]) -> SpotTable:
    """The parts of a file that describe its spots; its matrices can no longer be loaded."""
    with reading(path, "an AnnData file", error), open_hdf5(path) as file:
        return _table(file, path)


def _table(file: Any, path: Path) -> SpotTable:
    """The parts of an open file; matrices are read on demand, while it is open."""
    import h5py

    if "obs" not in file or "var" not in file:
        raise SpotsError(f"{path} is an HDF5 file but not an AnnData: it has no obs and var.")
    if isinstance(file["obs"], h5py.Dataset):  # written before anndata 0.7
        import anndata

        return table_of(anndata.read_h5ad(path), str(path))
    from anndata.io import read_elem

    genes = gene_names(read_elem(file["var"]))
    matrices = []
    if "X" in file:
        matrices.append(GeneMatrix("X", *genes, partial(read_elem, file["X"])))
    matrices += [
        GeneMatrix(f"layers['{key}']", *genes, partial(read_elem, file["layers"][key]))
        for key in count_layers(file.get("layers", {}))
    ]
    if "raw" in file and "var" in file["raw"] and "X" in file["raw"]:
        raw = gene_names(read_elem(file["raw/var"]))
        matrices.append(GeneMatrix("raw", *raw, partial(read_elem, file["raw/X"])))
    return SpotTable(
        source=str(path),
        obs=read_elem(file["obs"]),
        spatial=read_elem(file["obsm/spatial"]) if "obsm/spatial" in file else None,
        spatial_info=_spatial_info(file),
        matrices=tuple(matrices),
    )


def _spatial_info(file: Any) -> dict[str, Any]:
    """``uns["spatial"]`` without its images, which may be large."""
    import h5py
    from anndata.io import read_elem

    if not isinstance(file.get("uns/spatial"), h5py.Group):
        return {}
    return {
        library: {part: read_elem(group[part]) for part in ("scalefactors", "metadata") if part in group}
        for library, group in file["uns/spatial"].items()
        if isinstance(group, h5py.Group)
    }
