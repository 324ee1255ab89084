"""AnnData: spots with their positions and a matrix of counts, from .h5ad files or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmap_st.data.cohort import CohortSlide, LocalSlide
from mmap_st.data.counts import Counts
from mmap_st.data.hdf5 import open_hdf5, read_item
from mmap_st.data.readers.annotated import (
    POSITIONS,
    GeneMatrix,
    SpotTable,
    count_layers,
    counts_of,
    features_of,
    sections_of,
    spots_of,
    table_of,
)
from mmap_st.data.readers.finding import find_images
from mmap_st.data.spots import Spots, reading
from mmap_st.errors import CohortError, CountsError, SlideError, SpotsError


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """The sections of one file, or of all .h5ad files of a folder; the image of each has the same name.

    Raises
    ------
    CohortError
        If there is no such file.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.h5ad"))
    if not files or any(file.suffix.lower() != ".h5ad" for file in files):
        raise CohortError(f"{path} is neither an .h5ad file nor a folder that holds any.")
    images = find_images(files[0].parent)
    slides: list[CohortSlide] = []
    for file in files:
        row = CohortSlide(file.stem, image=images.get(file.stem), spots=file, counts=file, reader="h5ad")
        column, names = _sections(file)
        if len(names) < 2:
            slides.append(row)
        # Sections of one file were placed on an image each: the file's own name is that of none.
        slides += [
            replace(
                row,
                slide=f"{file.stem}_{name}",
                image=images.get(f"{file.stem}_{name}", images.get(name)),
                where=f"{column}={name}",
            )
            for name in (names if len(names) > 1 else ())
        ]
    return tuple(slides)


def _sections(file: Path) -> tuple[str, Sequence[str]]:
    """The column that tells the sections of a file apart, and their names; damage is reported later."""
    with suppress(SlideError):
        return sections_of(read_table(file, SpotsError))
    return "", ()


def read_spots(slide: LocalSlide) -> Spots:
    """Spots in the order of ``obs``."""
    assert slide.spots is not None
    with reading(slide.spots, "an AnnData file", SpotsError):
        return spots_of(read_table(slide.spots, SpotsError), slide.where)


def read_counts(slide: LocalSlide) -> Counts:
    """Counts: X, or ``layers["counts"]`` or ``raw`` if X does not hold counts."""
    assert slide.counts is not None
    with reading(slide.counts, "an AnnData file", CountsError), open_hdf5(slide.counts) as file:
        return counts_of(_table(file, slide.counts), slide.values or "counts", slide.where)


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

        whole = read_item(file["/"], lambda _: anndata.read_h5ad(path), CountsError)
        return table_of(whole, str(path))

    def read(part: Any) -> Any:
        from anndata.io import read_elem

        return read_item(part, read_elem, CountsError)

    features = features_of(read(file["var"]))
    matrices = []
    if "X" in file:
        matrices.append(GeneMatrix("X", features, partial(read, file["X"])))
    matrices += [
        GeneMatrix(f"layers['{key}']", features, partial(read, file["layers"][key]))
        for key in count_layers(file.get("layers", {}))
    ]
    if "raw" in file and "var" in file["raw"] and "X" in file["raw"]:
        raw = features_of(read(file["raw/var"]))
        matrices.append(GeneMatrix("raw", raw, partial(read, file["raw/X"])))
    return SpotTable(
        source=str(path),
        obs=read(file["obs"]),
        spatial=next((read(file["obsm"][key]) for key in POSITIONS if key in file.get("obsm", {})), None),
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
