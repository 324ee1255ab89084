"""AnnData files (.h5ad) of one section each, with positions in pixels in ``obsm["spatial"]``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.counts import Counts
from mmap_st.data.hdf5 import open_hdf5
from mmap_st.data.readers.anndata_table import (
    GeneMatrix,
    SpotTable,
    count_layers,
    counts_of,
    gene_names,
    spots_of,
    table_of,
)
from mmap_st.data.readers.files import find_images
from mmap_st.data.spots import Spots
from mmap_st.data.tables import reading
from mmap_st.errors import CohortError, CountsError, SlideError, SpotsError


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """A file, or all .h5ad files of a folder; the image of each has its name.

    Raises
    ------
    CohortError
        If there is no such file.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.h5ad"))
    if not files or any(file.suffix.lower() != ".h5ad" for file in files):
        raise CohortError(f"{path} is neither an .h5ad file nor a folder that has any.")
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
    """Counts: X, or where it holds none ``layers["counts"]`` or ``raw``."""
    assert slide.counts is not None
    with reading(slide.counts, "an AnnData file", CountsError), open_hdf5(slide.counts) as file:
        return counts_of(_table(file, slide.counts), slide.values or "counts")


def read_table(path: Path, error: type[SlideError]) -> SpotTable:
    """The parts of a file that matter for its spots; its matrices are not to be loaded any more."""
    with reading(path, "an AnnData file", error), open_hdf5(path) as file:
        return _table(file, path)


def _table(file: Any, path: Path) -> SpotTable:
    """The parts of an open file; matrices are read when asked for, while it is open."""
    import h5py

    if "obs" not in file or "var" not in file:
        raise SpotsError(f"{path} is an HDF5 file and no AnnData: it has no obs and var.")
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
    """``uns["spatial"]`` without its pictures, which may be large."""
    import h5py
    from anndata.io import read_elem

    if not isinstance(file.get("uns/spatial"), h5py.Group):
        return {}
    return {
        library: {part: read_elem(group[part]) for part in ("scalefactors", "metadata") if part in group}
        for library, group in file["uns/spatial"].items()
        if isinstance(group, h5py.Group)
    }
